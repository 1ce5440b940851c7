"""Real parser, real builder: TensorRT-RTX builds engines where there is no GPU."""

import gc
import os
import platform
import signal
import subprocess
import sys
import threading
from types import ModuleType

import onnx
import pytest

from anofpdm.export.build_progress import BuildProgress
from anofpdm.export.engine import SLOTS, build_engine
from anofpdm.export.typed_network import parse_network
from anofpdm.runtime.bundle import DEFAULT, NETWORK_FP16
from anofpdm.runtime.engines import load_tensorrt
from anofpdm.runtime.errors import EngineError, OutputError, SetupError

LIGHT = DEFAULT / NETWORK_FP16
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="the extra test has TensorRT-RTX on x86-64 Linux only",
)


@pytest.fixture(scope="module")
def trt():
    return load_tensorrt("tensorrt_rtx")


class Watched:
    """Something of TensorRT's with attributes of the test's own."""

    def __init__(self, real, **own):
        self.__dict__.update(real=real, own=own)

    def __getattr__(self, name):
        return self.own[name] if name in self.own else getattr(self.real, name)

    def __setattr__(self, name, value):
        setattr(self.real, name, value)


class Recorder:
    """A module like TensorRT: its parser and its configurations, with another builder.

    ``build``: what becomes of ``build_serialized_network(log)``; ``cache(held)``: whether a timing
    cache of these bytes (can be made, fits).
    """

    def __init__(self, trt, build=lambda log: b"engine", cache=lambda held: (True, True)):
        self.profiles, self.caches, self.config = [], [], None
        self.module = ModuleType("tensorrt")
        self.module.__dict__.update({**trt.__dict__, "__name__": "tensorrt"}, __version__="11.4.0")
        del self.module.ComputeCapability

        def create_timing_cache(held):
            made, fits = cache(held)
            self.caches.append(held)
            return Watched(None, serialize=lambda: held + b"+", fits=fits) if made else None

        def builder(log):
            real = trt.Builder(log)
            log.log(trt.ILogger.Severity.ERROR, "from the beginning")

            def create_builder_config():
                self.config = real.create_builder_config()
                return Watched(
                    self.config,
                    create_timing_cache=create_timing_cache,
                    set_timing_cache=lambda cache, ignore: not ignore and cache.fits,
                )

            def create_optimization_profile():
                self.profiles.append(real.create_optimization_profile())
                return self.profiles[-1]

            def build_serialized_network(network, config):
                return build(log)

            return Watched(
                real,
                create_builder_config=create_builder_config,
                create_optimization_profile=create_optimization_profile,
                build_serialized_network=build_serialized_network,
            )

        self.module.Builder = builder


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
def test_the_light_network_builds(trt, tmp_path, capfd):
    told = []
    cache = tmp_path / "timing.cache"
    engine = build_engine(
        trt, LIGHT, (1, 4), timing_cache=cache, progress=lambda *step: told.append(step)
    )
    assert isinstance(engine, bytes)
    # Weights and a profile of its own for each slot count.
    assert len(engine) > 1.2 * len(build_engine(trt, LIGHT, (1,))) > 1.2 * LIGHT.stat().st_size
    phases, shares = zip(*told, strict=True)
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

    from anofpdm.export.network import BothLabels
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
    with pytest.raises(SetupError, match="slots must be ascending whole numbers from 1"):
        build_engine(trt, LIGHT, slots)


def test_a_profile_that_tensorrt_refuses(trt):
    recorder = Recorder(trt)
    honest = recorder.module.Builder

    def builder(log):
        real = honest(log)

        def refuse(profile):
            log.log(trt.ILogger.Severity.ERROR, "too large")
            return -1

        config = Watched(real.create_builder_config(), add_optimization_profile=refuse)
        return Watched(real, create_builder_config=lambda: config)

    recorder.module.Builder = builder
    with pytest.raises(
        EngineError, match=r"TensorRT refuses 3 slots \(.*; too large\): give others"
    ):
        build_engine(recorder.module, LIGHT, (3,))


@pytest.mark.parametrize(
    ("asked", "targets"), [("8.9", ["SM89"]), ("12.0", ["SM120"]), ("9.0", []), (None, [])]
)
def test_compute_capabilities(trt, asked, targets):
    """TensorRT-RTX has no target of its own for 9.0: its default covers it."""
    recorder = Recorder(trt)
    recorder.module.ComputeCapability = trt.ComputeCapability
    build_engine(recorder.module, LIGHT, (1,), compute_capability=asked)
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

    said = "second; out of memory" if lines else "it gives no reason"
    with pytest.raises(EngineError) as caught:
        build_engine(Recorder(trt, build).module, LIGHT, (1,))
    assert str(caught.value) == (
        f"tensorrt 11.4.0 cannot build an engine of {LIGHT} ({said}): see that the GPU has free "
        "memory, or build for fewer slots"
    )


@pytest.fixture
def heeds_ctrl_c():
    """As in a terminal; a shell starts what runs in the background to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_build(trt, heeds_ctrl_c):
    told, built = [], []
    module = ModuleType("tensorrt_rtx")
    module.__dict__.update({**trt.__dict__, "__name__": "tensorrt_rtx"})

    def builder(log):
        real = trt.Builder(log)

        def build_serialized_network(network, config):
            built.append(real.build_serialized_network(network, config))
            return built[-1]

        return Watched(real, build_serialized_network=build_serialized_network)

    module.Builder = builder

    def press(phase, share):
        told.append(phase)
        if len(told) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_engine(module, LIGHT, (1,), progress=press)
    assert built == [None], "TensorRT went on"
    assert len(told) == 5
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_the_network_is_read(trt, heeds_ctrl_c):
    """Where TensorRT calls a log, an exception would be lost in C++."""
    pressed = []

    class Severity:
        @property
        def ERROR(self):
            if not pressed:
                pressed.append(True)
                os.kill(os.getpid(), signal.SIGINT)
            return trt.ILogger.Severity.ERROR

    class Logger(trt.ILogger):
        pass

    Logger.Severity = Severity()
    recorder = Recorder(trt)
    recorder.module.ILogger = Logger
    recorder.module.Builder = trt.Builder
    with pytest.raises(KeyboardInterrupt):
        build_engine(recorder.module, LIGHT, (1,))
    assert pressed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_shares_of_nested_phases():
    told = []
    with BuildProgress(lambda *step: told.append(step)) as watch:
        watch.start("whole", None, 2)
        watch.start("first", "whole", 2)
        assert watch.step("first")
        watch.finish("first")
        watch.step("whole")
        watch.start("second", "whole", 4)
        watch.step("second")
        watch.start("within", "second", 2)
        watch.step("within")
        watch.finish("within")
        watch.finish("whole")
    assert told == [("first", 0.25), ("whole", 0.5), ("second", 0.625), ("within", 0.6875),
                    ("whole", 1.0)]  # fmt: skip


def test_errors_of_whoever_shows_the_progress(trt, capfd):
    def show(phase, share):
        raise OSError("terminal is gone")

    with pytest.raises(OSError, match="terminal is gone"):
        build_engine(trt, LIGHT, (1,), progress=show)
    assert capfd.readouterr() == ("", "")


def test_no_garbage_is_collected_meanwhile(trt):
    """An old builder in a cycle, destroyed while TensorRT logs, is a deadlock."""
    seen = []
    build_engine(trt, LIGHT, (1,), progress=lambda *step: seen.append(gc.isenabled()))
    assert set(seen) == {False}
    assert gc.isenabled()
    gc.disable()
    build_engine(Recorder(trt).module, LIGHT, (1,))
    assert not gc.isenabled()
    gc.enable()


def test_builds_in_a_thread(trt):
    built = []
    thread = threading.Thread(target=lambda: built.append(build_engine(trt, LIGHT, (1,))))
    thread.start()
    thread.join()
    assert len(built[0]) > 1e7


@pytest.mark.parametrize(
    ("held", "cache", "asked", "kept"),
    [
        (None, lambda held: (True, True), [b""], b"+"),
        (b"good", lambda held: (True, True), [b"good"], b"good+"),
        (b"damaged", lambda held: (not held, True), [b"damaged", b""], b"+"),
        (b"of another GPU", lambda held: (True, not held), [b"of another GPU", b""], b"+"),
        (b"x", lambda held: (False, False), [b"x", b""], b"x"),
    ],
)
def test_timing_cache(trt, tmp_path, held, cache, asked, kept):
    path, recorder = tmp_path / "timing.cache", Recorder(trt, cache=cache)
    if held is not None:
        path.write_bytes(held)
    assert build_engine(recorder.module, LIGHT, (1,), timing_cache=path) == b"engine"
    assert recorder.caches == asked
    assert path.read_bytes() == kept


def test_a_timing_cache_that_cannot_be_kept(trt, tmp_path, monkeypatch):
    missing = tmp_path / "nowhere" / "timing.cache"

    def build(log):
        raise AssertionError("is not begun")

    with pytest.raises(OutputError, match=r"nowhere does not exist"):
        build_engine(Recorder(trt, build).module, LIGHT, (1,), timing_cache=missing)

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anofpdm.runtime.files.os.replace", full)
    path = tmp_path / "timing.cache"
    assert build_engine(Recorder(trt).module, LIGHT, (1,), timing_cache=path) == b"engine"
    assert list(tmp_path.iterdir()) == []


def test_no_torch_is_needed():
    """A GPU server that has the bundle and TensorRT."""
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'anofpdm.train'):\n"
        "    sys.modules[name] = None\n"
        "import anofpdm.export.main, anofpdm.export.parity, anofpdm.export.phantom\n"
        "from pathlib import Path\n"
        "from anofpdm.export.engine import build_engine\n"
        "from anofpdm.runtime.engines import load_tensorrt\n"
        f"print(len(build_engine(load_tensorrt(), Path({str(LIGHT)!r}), (1,))))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert int(done.stdout) > 1e7
