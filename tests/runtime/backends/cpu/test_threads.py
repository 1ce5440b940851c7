"""How a batch is shared among the cores; no prediction depends on it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support import SUMMATION, integer_network, toy_network, write_integer_network

from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.backends.cpu.threads import SharedBatch, SplitBatch, usable_cores
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle

RNG = np.random.default_rng(0)
X, T = RNG.standard_normal((7, 1, 8, 8)).astype(np.float32), np.arange(1, 8) * 50


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_parts_are_the_whole(parts, batch):
    sizes = []

    def predict(x_t, t):
        sizes.append(len(x_t))
        return toy_network(x_t, t)

    got = SplitBatch(predict, parts)(X[:batch], T[:batch])
    for one, other in zip(got, toy_network(X[:batch], T[:batch]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(sizes) == min(parts, batch)
    assert max(sizes) - min(sizes) <= 1


def test_parts_run_side_by_side():
    together = threading.Barrier(3, timeout=300)

    def predict(x_t, t):
        together.wait()
        return toy_network(x_t, t)

    SplitBatch(predict, 3)(X[:3], T[:3])


def test_what_fails_in_a_part_is_raised():
    def predict(x_t, t):
        if 150 in t:
            raise ValueError("no")
        return toy_network(x_t, t)

    with pytest.raises(ValueError, match="no"):
        SplitBatch(predict, 2)(X, T)


@pytest.mark.parametrize("threads", [1, 3])
def test_predictions_do_not_depend_on_threads_or_the_batch(tmp_path, threads):
    """To the last bit, where no order of summation has a rounding."""
    network = OnnxDenoiser(write_integer_network(tmp_path / "unet.onnx"), threads)
    x_t, t = RNG.integers(-2, 3, X.shape).astype(np.float32), np.arange(1, 8)
    for batch in (7, 5, 3, 2, 1):
        for _ in range(3):
            got = np.stack(network(x_t[:batch], t[:batch]))
            np.testing.assert_array_equal(got, np.stack(integer_network(x_t[:batch], t[:batch])))


def test_the_default_model_depends_on_threads_and_the_batch_by_rounding_at_most():
    path = open_bundle(DEFAULT).network
    x_t, t = RNG.standard_normal((5, 1, 128, 128)).astype(np.float32), T[:5]
    single, three = OnnxDenoiser(path, 1), OnnxDenoiser(path, 3)
    want = np.stack(single(x_t, t))
    tolerance = SUMMATION * np.abs(want).max()
    for batch in (5, 2, 1):
        got = np.stack(three(x_t[:batch], t[:batch]))
        np.testing.assert_allclose(got, want[:, :batch], rtol=0, atol=tolerance)
    got = np.stack(single(x_t[3:4], t[3:4]))
    np.testing.assert_allclose(got, want[:, 3:4], rtol=0, atol=tolerance)


def test_cores_are_counted():
    assert usable_cores() >= 1


def test_a_slice_alone_is_not_split_and_loads_the_network_on_all_cores_once():
    loads, split = [], []

    def whole():
        loads.append(1)
        return toy_network

    def by_part(x_t, t):
        split.append(len(x_t))
        return toy_network(x_t, t)

    network = SharedBatch(by_part, whole, 2)
    np.testing.assert_array_equal(network(X, T)[0], toy_network(X, T)[0])
    assert sorted(split) == [3, 4]
    assert not loads
    with ThreadPoolExecutor(8) as pool:
        for eps, _ in pool.map(lambda _: network(X[:1], T[:1]), range(40)):
            np.testing.assert_array_equal(eps, toy_network(X[:1], T[:1])[0])
    assert loads == [1]
    assert sorted(split) == [3, 4]
