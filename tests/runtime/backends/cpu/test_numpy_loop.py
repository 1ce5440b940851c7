"""The loop against closed forms and against the float64 transcription."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from support import toy_network
from transcription import alpha_bar, anomaly

from anofpdm.runtime.backends.cpu.numpy_loop import NumpySlots
from anofpdm.runtime.backends.scheduler import run
from anofpdm.runtime.method.accumulator import AnomalyAccumulator
from anofpdm.runtime.method.decision import alignment, cosine
from anofpdm.runtime.method.noise import slice_noise
from anofpdm.runtime.method.process import Process, Slice
from anofpdm.runtime.method.schedule import Schedule


def slices(count, channels=1, size=16, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count, channels, size, size)
    return [Slice(i, x) for i, x in enumerate(rng.uniform(-1, 1, shape).astype(np.float32))]


def accumulators(process, network, stream, w=2.0, scored=(0,), **options):
    slots = NumpySlots(process, network, lambda: AnomalyAccumulator(w, scored), **options)
    return {item.key: accumulator for item, accumulator in run(slots, stream)}


class Gaussian:
    """The exact noise prediction when clean slices are N(mean, variance), per label."""

    def __init__(self, mean_healthy, mean_null, variance):
        self.means, self.variance = (mean_healthy, mean_null), variance
        self.abar = np.array(alpha_bar())

    def __call__(self, x_t, t):
        a = self.abar[t - 1][:, None, None, None]
        spread = a * self.variance + 1 - a
        both = [np.sqrt(1 - a) * (x_t - np.sqrt(a) * mean) / spread for mean in self.means]
        return both[0].astype(np.float32), both[1].astype(np.float32)


def test_divergence_of_two_gaussians_is_the_closed_form():
    """E[x0|x_t] differs by (1 - abar) / (abar s^2 + 1 - abar) (mu_h - mu_0), whatever x_t is."""
    mean_healthy, mean_null, variance, w = -0.3, 0.1, 0.04, 3.0
    process = Process(Schedule(), L=601, stride=50, clip=False)
    accumulator = accumulators(
        process, Gaussian(mean_healthy, mean_null, variance), slices(1), w=w
    )[0]
    a = np.array([alpha_bar()[t - 1] for t in range(1, 602, 50)])
    apart = (1 + w) * (1 - a) / (a * variance + 1 - a) * (mean_healthy - mean_null)
    np.testing.assert_allclose(np.array(accumulator.M)[:, 0], apart**2, rtol=2e-4)


def test_certain_network_makes_the_map_the_distance_to_its_answer():
    """With variance 0 both predictions are the means, so S_t and H are (mu_w - x0)^2."""
    mean_healthy, mean_null, w = 0.2, 0.1, 1.0
    process = Process(Schedule(), L=401, stride=100)
    stream = slices(2)
    results = accumulators(process, Gaussian(mean_healthy, mean_null, 0.0), stream, w=w)
    guided = (1 + w) * mean_healthy - w * mean_null
    for item in stream:
        np.testing.assert_allclose(results[item.key].H, (guided - item.x0) ** 2, atol=2e-4)
        assert len(results[item.key].M) == 5


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("channels", "scored"), [(1, (0,)), (3, (0, 2))])
@pytest.mark.parametrize(("L", "stride"), [(40, 1), (301, 60), (600, 100)])
def test_agrees_with_the_transcription(clip, channels, scored, L, stride):
    process = Process(Schedule(), L, stride, clip)
    stream = slices(3, channels)
    results = accumulators(process, toy_network, stream, w=4.0, scored=scored, seed=11, slots=2)
    for item in stream:
        steps = [int(t) for t in process.timesteps]
        noise = partial(slice_noise, 11, item.key, shape=item.x0.shape)
        want = anomaly(item.x0, noise, toy_network, 4.0, steps, clip, scored)
        got = results[item.key]
        for name in ("M", "MSE_h", "MSE_0"):
            np.testing.assert_allclose(np.array(getattr(got, name)), want[name], rtol=1e-4)
        np.testing.assert_allclose(got.H, want["H"], rtol=1e-4, atol=1e-4 * want["H"].max())
        assert got.t_e.tolist() == want["t_e"].tolist()
        curves = got.curves()
        assert cosine(curves.MSE_h, curves.MSE_0) == pytest.approx(want["cos"], abs=1e-6)
        aligned = alignment(curves.M, curves.MSE_h, curves.MSE_0)
        assert aligned == pytest.approx(want["alignment"], abs=1e-4)


def test_slots_and_other_slices_do_not_change_results():
    process, stream = Process(Schedule(), 301, 60), slices(7)
    alone = {item.key: accumulators(process, toy_network, [item])[item.key] for item in stream}
    for slots in (1, 3, 16):
        together = accumulators(process, toy_network, stream[::-1], slots=slots)
        for key, accumulator in alone.items():
            assert np.array_equal(accumulator.H, together[key].H)
            assert np.array_equal(accumulator.M, together[key].M)


def test_slots_are_refilled_and_slices_are_fetched_only_when_needed():
    sizes, fetched = [], []

    def network(x_t, t):
        sizes.append(len(x_t))
        return toy_network(x_t, t)

    def stream():
        for item in slices(10):
            fetched.append(item.key)
            yield item

    slots = NumpySlots(
        Process(Schedule(), 3), network, lambda: AnomalyAccumulator(1.0, (0,)), slots=4
    )
    results = run(slots, stream())
    next(results)
    assert fetched == [0, 1, 2, 3]
    assert len(list(results)) == 9
    assert sizes == [4] * 6 + [2] * 3


def test_in_ddpm_encoding_spare_slots_take_further_steps_of_the_same_slice():
    batches = []

    def network(x_t, t):
        batches.append(t.tolist())
        return toy_network(x_t, t)

    process = Process(Schedule(), L=6, encoding="ddpm")
    accumulators(process, network, slices(1), slots=4)
    assert batches == [[1, 2, 3, 4], [5, 6]]
    batches.clear()
    accumulators(process, network, slices(3), slots=4)
    # One step of each slice first; what is left over goes to the first one.
    assert batches[0] == [1, 2, 1, 1]
    assert sum(len(batch) for batch in batches) == 18
    assert all(len(batch) == 4 for batch in batches[:4])


@pytest.mark.parametrize("encoding", ["ddim", "ddpm"])
def test_memory_does_not_grow_with_length_or_number_of_slices(encoding):
    """Maps of 64 x 64 float32 are 16 KiB each; what may grow are the curves, bytes a step."""

    def peak(L, count):
        rng = np.random.default_rng(0)
        endless = (Slice(i, rng.random((1, 64, 64), np.float32)) for i in range(count))
        process = Process(Schedule(), L, 1, encoding=encoding)
        tracemalloc.start()
        slots = NumpySlots(process, toy_network, lambda: AnomalyAccumulator(2.0, (0,)))
        for _ in run(slots, endless):
            pass
        largest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return largest

    small = peak(20, 12)
    assert peak(120, 12) < small + 4 * 3 * 120 * 200 + 2**15
    assert peak(20, 48) < small + 2**15


def test_no_slices_no_results():
    slots = NumpySlots(Process(Schedule(), 3), toy_network, lambda: AnomalyAccumulator(1.0, (0,)))
    assert list(run(slots, [])) == []
