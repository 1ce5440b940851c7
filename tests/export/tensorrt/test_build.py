"""Real parser, real builder: TensorRT-RTX builds engines where there is no GPU."""

import subprocess
import sys

import onnx
import pytest
from recorded_tensorrt import LIGHT, Recorder, Wrapped

from anofpdm.export.tensorrt.build import SLOTS, build_engine, parse_network
from anofpdm.runtime.bundle.bundle import DEFAULT, NETWORK, NETWORK_FP16
from anofpdm.runtime.errors import EngineError, OptionsError, OutputError


def types(trt, parsed, kind):
    """The types that layers of a kind take and give."""
    network = parsed.network
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    chosen = [layer for layer in layers if layer.type == getattr(trt.LayerType, kind)]
    return [(one.get_input(0).dtype.name, one.get_output(0).dtype.name) for one in chosen]


def check_precisions(trt, path):
    parsed = parse_network(trt, path)
    nodes = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    convolutions = types(trt, parsed, "CONVOLUTION")
    assert len(convolutions) == nodes.count("Conv") > 30
    products = types(trt, parsed, "MATRIX_MULTIPLY")
    assert len(products) == nodes.count("MatMul") + nodes.count("Gemm") > 20
    softmax = types(trt, parsed, "SOFTMAX")
    assert len(softmax) == nodes.count("Softmax") > 5
    assert set(convolutions + products + softmax) == {("HALF", "HALF")}
    normalisations = types(trt, parsed, "NORMALIZATION")
    assert len(normalisations) > 20
    assert set(normalisations) == {("FLOAT", "FLOAT")}
    ends = [parsed.network.get_input(i) for i in range(2)]
    ends += [parsed.network.get_output(i) for i in range(2)]
    names = ["x_t", "t", "eps_healthy", "eps_null"]
    assert [(end.name, end.dtype.name) for end in ends] == list(
        zip(names, ("FLOAT", "INT64", "FLOAT", "FLOAT"), strict=True)
    )


def test_precisions_of_the_light_network(trt):
    check_precisions(trt, LIGHT)


@pytest.mark.filterwarnings("error")
@pytest.mark.slow
def test_the_light_network_builds(trt, tmp_path, capfd):
    reports = []
    cache = tmp_path / "timing.cache"
    engine = build_engine(
        trt, LIGHT, (1, 4), timing_cache=cache, progress=lambda *step: reports.append(step)
    )
    assert isinstance(engine, bytes)
    # Weights and a profile of its own for each slot count.
    assert (
        len(engine)
        > 1.2 * len(build_engine(trt, LIGHT, (1,)))
        > 1.2 * (DEFAULT / NETWORK).stat().st_size
    )
    phases, shares = zip(*reports, strict=True)
    assert len(set(phases)) > 3
    assert list(shares) == sorted(shares)
    assert 0 < shares[0] < 0.01
    assert len({round(share, 1) for share in shares}) > 3
    assert shares[-1] == 1
    assert not cache.exists(), "TensorRT-RTX has no timing cache"
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_reference_network_builds(trt, tmp_path):
    import torch

    from anofpdm.export.both_labels import BothLabels
    from anofpdm.export.onnx_file import export_onnx
    from anofpdm.train.config import UNetConfig
    from anofpdm.train.unet import UNet

    path = tmp_path / NETWORK_FP16
    torch.manual_seed(0)
    unet = UNet(UNetConfig(in_channels=4)).eval()
    assert sum(parameter.numel() for parameter in unet.parameters()) > 100e6
    for parameter in unet.parameters():  # layers that begin as zeros
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    export_onnx(BothLabels(unet, "fp16"), path)
    check_precisions(trt, path)
    assert len(build_engine(trt, path, (1,))) > 0.8 * path.stat().st_size


def test_a_profile_for_every_slot_count(trt):
    recorder = Recorder(trt)
    assert build_engine(recorder.module, LIGHT, workspace_mib=512) == b"engine"
    assert recorder.config.num_optimization_profiles == len(recorder.profiles) == len(SLOTS)
    for count, profile in zip(SLOTS, recorder.profiles, strict=True):
        assert [tuple(s) for s in profile.get_shape("x_t")] == 3 * [(count, 1, 128, 128)]
        assert [tuple(s) for s in profile.get_shape("t")] == 3 * [(count,)]
    pool = recorder.module.MemoryPoolType.WORKSPACE
    assert recorder.config.get_memory_pool_limit(pool) == 512 * 2**20
    plain = Recorder(trt)
    build_engine(plain.module, LIGHT, (2, 3))
    assert plain.config.num_optimization_profiles == 2
    assert plain.config.get_memory_pool_limit(pool) > 2**35


@pytest.mark.parametrize("slots", [(), (0, 1), (4, 1), (1, 1), (1.5,)])
def test_slots_that_are_none(trt, slots):
    with pytest.raises(OptionsError, match="slots must be ascending whole numbers from 1"):
        build_engine(trt, LIGHT, slots)


def test_a_profile_that_tensorrt_refuses(trt):
    recorder = Recorder(trt)
    honest = recorder.module.Builder

    def builder(log):
        real = honest(log)

        def refuse(profile):
            log.log(trt.ILogger.Severity.ERROR, "too large")
            return -1

        config = Wrapped(real.create_builder_config(), add_optimization_profile=refuse)
        return Wrapped(real, create_builder_config=lambda: config)

    recorder.module.Builder = builder
    with pytest.raises(
        EngineError, match=r"TensorRT refuses 3 slots \(.*; too large\): give others"
    ):
        build_engine(recorder.module, LIGHT, (3,))


@pytest.mark.parametrize(
    ("capability", "targets"), [("8.9", ["SM89"]), ("12.0", ["SM120"]), ("9.0", []), (None, [])]
)
def test_compute_capabilities(trt, capability, targets):
    """TensorRT-RTX has no target of its own for 9.0: its default covers it."""
    recorder = Recorder(trt)
    recorder.module.ComputeCapability = trt.ComputeCapability
    build_engine(recorder.module, LIGHT, (1,), compute_capability=capability)
    config = recorder.config
    aimed = [config.get_compute_capability(i).name for i in range(config.num_compute_capabilities)]
    assert aimed == targets


def test_tensorrt_builds_for_the_gpu_it_is_on(trt):
    recorder = Recorder(trt)
    build_engine(recorder.module, LIGHT, (1,), compute_capability="8.9")
    assert recorder.config.num_compute_capabilities == 0


def test_a_tensorrt_that_does_not_start(trt):
    def builder(log):
        log.log(trt.ILogger.Severity.WARNING, "a warning")
        log.log(trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    recorder = Recorder(trt)
    recorder.module.Builder = builder
    message = r"^tensorrt 11.4.0 does not start \(CUDA initialization .*: 35\): .* nvidia-smi"
    with pytest.raises(EngineError, match=message):
        build_engine(recorder.module, LIGHT, (1,))


@pytest.mark.parametrize("lines", [["first", "second", "out of\nmemory"], []])
def test_a_build_that_fails(trt, lines):
    def build(log):
        for line in lines:
            log.log(trt.ILogger.Severity.ERROR, line)

    errors = "second; out of memory" if lines else "it gives no reason"
    with pytest.raises(EngineError) as caught:
        build_engine(Recorder(trt, build).module, LIGHT, (1,))
    assert str(caught.value) == (
        f"tensorrt 11.4.0 cannot build an engine of {LIGHT} ({errors}): see that the GPU has free "
        "memory, or build for fewer slots"
    )


@pytest.mark.parametrize(
    ("content", "cache", "tried", "kept"),
    [
        (None, lambda cache: (True, True), [b""], b"+"),
        (b"good", lambda cache: (True, True), [b"good"], b"good+"),
        (b"damaged", lambda cache: (not cache, True), [b"damaged", b""], b"+"),
        (b"of another GPU", lambda cache: (True, not cache), [b"of another GPU", b""], b"+"),
        (b"x", lambda cache: (False, False), [b"x", b""], b"x"),
    ],
)
def test_timing_cache(trt, tmp_path, content, cache, tried, kept):
    path, recorder = tmp_path / "timing.cache", Recorder(trt, cache=cache)
    if content is not None:
        path.write_bytes(content)
    assert build_engine(recorder.module, LIGHT, (1,), timing_cache=path) == b"engine"
    assert recorder.caches == tried
    assert path.read_bytes() == kept


def test_a_timing_cache_that_cannot_be_kept(trt, tmp_path, monkeypatch):
    missing = tmp_path / "nowhere" / "timing.cache"

    def build(log):
        raise AssertionError("is not begun")

    with pytest.raises(OutputError, match=r"nowhere does not exist"):
        build_engine(Recorder(trt, build).module, LIGHT, (1,), timing_cache=missing)

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anofpdm.runtime.util.files.os.replace", full)
    path = tmp_path / "timing.cache"
    assert build_engine(Recorder(trt).module, LIGHT, (1,), timing_cache=path) == b"engine"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("trt")
def test_no_torch_is_needed():
    """A GPU server that has the bundle and TensorRT."""
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'anofpdm.train'):\n"
        "    sys.modules[name] = None\n"
        "import anofpdm.export.cli, anofpdm.export.parity, anofpdm.export.phantom\n"
        "from pathlib import Path\n"
        "from anofpdm.export.tensorrt.build import build_engine\n"
        "from anofpdm.runtime.bundle.engines import load_tensorrt\n"
        f"print(len(build_engine(load_tensorrt(), Path({str(LIGHT)!r}), (1,))))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert int(done.stdout) > 1e7
