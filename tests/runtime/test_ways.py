"""How a batch is shared among the cores; no prediction depends on it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support import toy_network

from anofpdm.runtime.bundle import DEFAULT, open_bundle
from anofpdm.runtime.denoiser import OnnxDenoiser
from anofpdm.runtime.ways import Fastest, InParts, usable_cores

RNG = np.random.default_rng(0)
X, T = RNG.standard_normal((7, 1, 8, 8)).astype(np.float32), np.arange(1, 8) * 50


class Clock:
    """Seconds that pass only when somebody works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def worker(self, seconds, calls):
        def predict(x_t, t):
            self.now += seconds(len(x_t))
            calls.append(len(x_t))
            return toy_network(x_t, t)

        return predict


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 9])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_parts_are_the_whole(parts, batch):
    sizes = []

    def predict(x_t, t):
        sizes.append(len(x_t))
        return toy_network(x_t, t)

    got = InParts(predict, parts)(X[:batch], T[:batch])
    for one, other in zip(got, toy_network(X[:batch], T[:batch]), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(sizes) == min(parts, batch)
    assert max(sizes) - min(sizes) <= 1


def test_parts_run_side_by_side():
    together = threading.Barrier(3, timeout=20)

    def predict(x_t, t):
        together.wait()
        return toy_network(x_t, t)

    InParts(predict, 3)(X[:3], T[:3])


def test_what_fails_in_a_part_is_raised():
    def predict(x_t, t):
        if 150 in t:
            raise ValueError("no")
        return toy_network(x_t, t)

    with pytest.raises(ValueError, match="no"):
        InParts(predict, 2)(X, T)


def test_the_fastest_way_is_found_for_each_batch_size():
    clock, slow, quick = Clock(), [], []
    ways = {
        "a": lambda: clock.worker(lambda n: 1.0, slow),
        "b": lambda: clock.worker(lambda n: 0.3 * n, quick),  # faster for up to three
    }
    network = Fastest(ways, clock)
    for _ in range(20):
        for batch in (2, 5):
            got = network(X[:batch], T[:batch])
            np.testing.assert_array_equal(got[0], toy_network(X[:batch], T[:batch])[0])
    assert (network.best(2), network.best(5)) == ("b", "a")
    # Tried and no more; the first one once besides, to compare what they give.
    assert (slow.count(2), quick.count(5)) == (5, 4)
    assert (quick.count(2), slow.count(5)) == (16, 17)
    assert network.best(3) == ""


def test_one_slow_batch_does_not_decide():
    """The first one of each size has to find memory."""
    clock, first = Clock(), iter([9.0])
    ways = {
        "a": lambda: clock.worker(lambda n: next(first, 0.1), []),
        "b": lambda: clock.worker(lambda n: 0.2, []),
    }
    network = Fastest(ways, clock)
    for _ in range(8):
        network(X, T)
    assert network.best(7) == "a"


def test_a_slice_alone_takes_the_first_way_and_nothing_else_is_made():
    made = []

    def other():
        made.append(1)
        return toy_network

    network = Fastest({"a": lambda: toy_network, "b": other})
    for _ in range(9):
        network(X[:1], T[:1])
    assert not made
    network(X[:2], T[:2])
    network(X[:2], T[:2])
    assert made == [1]


def test_many_threads_may_ask_at_once():
    network = Fastest({"a": lambda: toy_network, "b": lambda: InParts(toy_network, 2)})
    want = toy_network(X, T)[0]
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: network(X, T)[0], range(60)):
            np.testing.assert_array_equal(got, want)
    assert network.best(7) in ("a", "b")


def test_predictions_of_the_default_model_do_not_depend_on_threads_or_the_batch():
    path = open_bundle(DEFAULT).network
    x_t, t = RNG.standard_normal((5, 1, 128, 128)).astype(np.float32), T[:5]
    one = OnnxDenoiser(path, 1)
    want = np.stack(one(x_t, t))
    three = OnnxDenoiser(path, 3)
    for batch in (5, 2, 1):
        for _ in range(3):  # both ways
            got = np.stack(three(x_t[:batch], t[:batch]))
            np.testing.assert_array_equal(got, want[:, :batch])
    np.testing.assert_array_equal(np.stack(one(x_t[3:4], t[3:4])), want[:, 3:4])


def test_cores_are_counted():
    assert usable_cores() >= 1


def test_a_way_that_gives_other_numbers_is_not_taken():
    """However fast it is; and what it gave is not handed on."""
    clock, calls = Clock(), []
    right = clock.worker(lambda n: 1.0, [])

    def wrong(x_t, t):
        calls.append(1)
        eps_healthy, eps_null = toy_network(x_t, t)
        return eps_healthy, np.nextafter(eps_null, np.float32(9))

    network = Fastest({"a": lambda: right, "b": lambda: wrong}, clock)
    want = toy_network(X, T)
    for _ in range(12):
        for one, other in zip(network(X, T), want, strict=True):
            np.testing.assert_array_equal(one, other)
    assert calls == [1]
    assert network.best(7) == "a"
