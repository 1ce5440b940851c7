"""benchmarks/gpu.py from end to end, on a GPU made of the host; and the bundles that it carries."""

import contextlib
import json

import gpu
import numpy as np
import onnx
import pytest
import skeleton
from click.testing import CliRunner
from host_gpu import HostGpu, on_gpu
from onnx import TensorProto, helper, numpy_helper
from onnx_cost import flop

from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.bundle import DEFAULT, NETWORK, NETWORK_FP16, open_bundle
from anofpdm.runtime.bundle.engines import Engine
from anofpdm.runtime.errors import DeviceError


def weights(path):
    tensors = onnx.load(path).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}


def test_a_skeleton_is_small_and_its_two_networks_agree_again(tmp_path):
    skeleton.strip_weights(DEFAULT, tmp_path / "bones")
    size = sum(path.stat().st_size for path in (tmp_path / "bones").iterdir())
    assert size < 2e6 < (DEFAULT / NETWORK).stat().st_size
    skeleton.fill_weights(tmp_path / "bones", tmp_path / "again")
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


@pytest.mark.slow
def test_it_measures_writes_and_prints(tmp_path, monkeypatch):

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
    def toy_gpu(index):
        yield HostGpu()

    monkeypatch.setattr(gpu, "SLOTS", (1, 2))
    monkeypatch.setattr(gpu, "Gpu", toy_gpu)
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
    assert "not_measured" not in trt, trt["not_measured"]
    assert trt["parity"]["accepted"]
    assert [step["slots"] for step in trt["steps"]] == [1, 2]
    assert trt["steps"][0]["step_ms"] == [2.0, 2.0, 2.0]
    # 4.06 GFLOP a slot and call (both labels); 2 slots in 2 ms.
    assert trt["gflop_a_slot"] == pytest.approx(4.06, abs=0.01)
    assert "| light preset | trt | 2 | 2.000 | 2.000 [2.000, 2.000] | 0.0% | 4.1 |" in done.output
    assert "light preset by cuda: DeviceError: no cuDNN: install it" in done.output
    done = CliRunner().invoke(gpu.main, ["run", "--json", str(out), "--budget-s", "0"])
    assert done.output.count("TimeoutError: not measured") >= 2


def test_the_flop_of_a_convolution_and_a_product():
    """By hand, for a batch of 1."""
    w, m = np.zeros((8, 8, 3, 3), np.float32), np.zeros((16, 5), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["y", "m"], ["z"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8, 16, width])
        for name, width in (("x", 16), ("z", 5))
    ]
    weights = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(m, "m")]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert flop(model) == 2 * 16**2 * 9 * 8**2 + 2 * 8 * 16 * 16 * 5
