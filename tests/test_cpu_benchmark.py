"""What the figures on the CPU's use are made of."""

import cpu
import numpy as np
import onnx
import pytest
import torch
from onnx_cost import flop

from anofpdm.runtime.backends.cpu.onnxruntime import load_onnxruntime


def test_the_convolution_is_one_and_costs_what_is_said():
    model = cpu.convolution(8, (2, 8, 16, 16))
    assert flop(onnx.load_from_string(model)) == 2 * 16**2 * 9 * 8**2  # of one image
    session = load_onnxruntime().InferenceSession(model, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, 8, 16, 16)).astype(np.float32)
    w = onnx.numpy_helper.to_array(onnx.load_from_string(model).graph.initializer[0])
    want = torch.nn.functional.conv2d(torch.from_numpy(x), torch.tensor(w), padding=1)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want.numpy(), atol=1e-4)


def test_work_is_timed_in_turn():
    order = []
    seconds = cpu.in_turn([lambda: order.append("a"), lambda: order.append("b")], 3)
    assert order == 4 * ["a", "b"]
    assert [len(one) for one in seconds] == [3, 3]


def test_starting_up_takes_some_time_but_not_the_work():
    found = cpu.start_up(1)["start_up_s"]
    assert 0.1 < found[0] < 30
    assert found[1] <= found[0] <= found[2]


def test_the_share_is_that_of_the_fastest():
    from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle

    found = cpu.rates(open_bundle(DEFAULT), 1)
    assert found["share"] == pytest.approx(found["network_gflops"] / found["convolution_gflops"])
    assert 0.1 < found["share"] < 1.2
