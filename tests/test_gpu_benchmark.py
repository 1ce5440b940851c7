"""benchmarks/gpu.py from end to end, on a GPU made of the host; and the bundles that it carries."""

import contextlib
import json
import sys

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from host_gpu import HostGpu, on_gpu
from onnx import numpy_helper
from support import ROOT

from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.bundle import DEFAULT, NETWORK, NETWORK_FP16, open_bundle
from anofpdm.runtime.bundle.engines import Engine
from anofpdm.runtime.errors import DeviceError


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    kept = set(sys.modules)
    import gpu
    import skeleton

    yield gpu, skeleton
    for name in set(sys.modules) - kept:
        if getattr(sys.modules[name], "__file__", None) and "benchmarks" in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def weights(path):
    tensors = onnx.load(path).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}


def test_a_skeleton_is_small_and_its_two_networks_agree_again(benchmarks, tmp_path):
    _, skeleton = benchmarks
    skeleton.strip(DEFAULT, tmp_path / "bones")
    size = sum(path.stat().st_size for path in (tmp_path / "bones").iterdir())
    assert size < 2e6 < (DEFAULT / NETWORK).stat().st_size
    skeleton.flesh(tmp_path / "bones", tmp_path / "again")
    made = open_bundle(tmp_path / "again")
    for name in (NETWORK, NETWORK_FP16):
        before, after = weights(DEFAULT / name), weights(made.path / name)
        assert before.keys() == after.keys()
        for key, values in before.items():
            assert (after[key].shape, after[key].dtype) == (values.shape, values.dtype)
            if values.size > 1e5:
                assert after[key].std() == pytest.approx(values.std(), rel=0.05)
                assert abs(np.corrcoef(after[key].ravel(), values.ravel())[0, 1]) < 0.05
    x_t = np.random.default_rng(0).standard_normal((1, 1, 128, 128)).astype(np.float32)
    full, half = (
        OnnxDenoiser(path)(x_t, np.array([300])) for path in (made.network, made.network_fp16)
    )
    np.testing.assert_allclose(full[0], half[0], atol=0.02 * np.abs(full[0]).max())


def test_it_measures_writes_and_prints(benchmarks, tmp_path, monkeypatch):
    gpu, _ = benchmarks

    def network(x_t, t):
        share = (np.asarray(t) / 1000)[:, None, None, None].astype(np.float32)
        return 0.9 * x_t, (0.9 - 0.1 * share) * x_t

    def open_gpu(by, index, bundle, slots):
        if by == "cuda":
            raise DeviceError("no cuDNN: install it")
        backend = on_gpu(network, 1, 128, slots, network={"widths": gpu.SLOTS})
        backend.device = by
        return backend

    built = []

    def build_on(on, trt, bundle, slots, tolerance, reference):
        assert (slots, tolerance) == (gpu.SLOTS, None)
        assert len(reference.curves) == 16
        built.append(bundle)
        return Engine("Host", "9.0", "tensorrt", "11.4", "0" * 64, slots,
                      parity={"eps": 0, "M_t": 1e-3, "H": 0, "t_e": 1, "dice": 0.99},
                      provenance={"build_s": 3})  # fmt: skip

    @contextlib.contextmanager
    def opened(index):
        yield HostGpu()

    monkeypatch.setattr(gpu, "SLOTS", (1, 2))
    monkeypatch.setattr(gpu, "Gpu", opened)
    monkeypatch.setattr(gpu, "open_gpu", open_gpu)
    monkeypatch.setattr(gpu, "build_on", build_on)
    monkeypatch.setattr(gpu, "load_tensorrt", lambda: None)
    monkeypatch.setattr(gpu, "OnnxDenoiser", lambda path: network)
    out = tmp_path / "gpu.json"
    done = CliRunner().invoke(gpu.main, ["run", "--json", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    results = json.loads(out.read_text())
    assert results["machine"]["gpu"] == "Host"
    cuda, trt = results["measured"]
    assert cuda["not_measured"] == "DeviceError: no cuDNN: install it"
    assert results["ceilings"]["matrix_tflops"] is None
    assert trt["parity"]["accepted"]
    assert [step["slots"] for step in trt["steps"]] == [1, 2]
    assert trt["steps"][0]["step_ms"] == [2.0, 2.0, 2.0]
    # 4.06 GFLOP a slot and call, as benchmarks/graph.py counts; 2 slots in 2 ms.
    assert trt["gflop_a_slot"] == pytest.approx(4.06, abs=0.01)
    assert "| light preset | trt | 2 | 2.000 | 2.000 [2.000, 2.000] | 0.0% | 4.1 |" in done.output
    assert "light preset by cuda: DeviceError: no cuDNN: install it" in done.output
    done = CliRunner().invoke(gpu.main, ["run", "--json", str(out), "--budget-s", "0"])
    assert done.output.count("TimeUpError: not measured") >= 2
