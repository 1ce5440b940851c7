"""The device loop on a GPU made of the host: scheduling, what is read when, memory, failures.

What it computes is compared with the transcription in test_paper_setups.py.
"""

import inspect
import itertools

import numpy as np
import pytest
from host_gpu import HostGpu, HostNetwork, kernel_noise, memory, on_gpu, same_noise
from support import bundle, fading_network, recalibrated, toy_network

from anofpdm.runtime.backends.base import Recipe
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cuda.device import Gpu
from anofpdm.runtime.backends.cuda.layout import LoopLayout
from anofpdm.runtime.backends.cuda.network import HostDenoiser
from anofpdm.runtime.bundle.calibration import EarlyStop
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.errors import BundleError, DeviceMemoryError, OptionsError
from anofpdm.runtime.method.anomaly_map import MapRule
from anofpdm.runtime.method.decision import LogisticDecision
from anofpdm.runtime.method.noise import slice_noise
from anofpdm.runtime.method.process import Process, Slice
from anofpdm.runtime.method.schedule import Schedule
from anofpdm.runtime.segmenter import Segmenter

SIZE = 12
STOP = EarlyStop(0.9, 2, 2.0, LogisticDecision(1.0, 0.0, 0.0), (0.01,), 1.0, 0.9, 0.9, 5.0, 21)


@pytest.fixture(scope="module", autouse=True)
def _same_noise():
    with same_noise():
        yield


def slices(count, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    x0 = rng.uniform(-1, 1, (count, channels, SIZE, SIZE)).astype(np.float32)
    x0 -= np.linspace(0, 0.9, count, dtype=np.float32)[:, None, None, None]
    return [Slice(i, x) for i, x in enumerate(x0.clip(-1, 1))]


def early(encoding="ddim"):
    toy = bundle(size=SIZE, process=(encoding, 601, 30, "even"))
    return recalibrated(toy, early_stop=STOP)


def segmented(toy, backend, stream, **options):
    results = list(Segmenter(toy, backend, **options).segment_slices(stream))
    assert len({result.key for result in results}) == len(results)
    return {result.key: result for result in results}


def same(results, other):
    assert results.keys() == other.keys()
    for key, result in results.items():
        np.testing.assert_array_equal(result.H, other[key].H)
        np.testing.assert_array_equal(result.t_e, other[key].t_e)
        for name in ("M", "MSE_h", "MSE_0"):
            got, want = getattr(result, name), getattr(other[key], name)
            np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("capturable", [True, False])
@pytest.mark.parametrize("patience", [None, 1, 7])
@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("encoding", ["ddim", "ddpm"])
def test_slots_and_the_moment_of_reading_change_nothing(encoding, slots, patience, capturable):
    """Slices leave at different steps, and are followed by others in their slots."""
    toy, stream = early(encoding), slices(11)
    want = segmented(toy, NumpyBackend(fading_network), stream)
    assert len({len(result.M) for result in want.values()}) > 2
    network = {"capturable": capturable}
    got = on_gpu(fading_network, 1, SIZE, slots, network=network, patience=patience)
    same(segmented(toy, got, stream), want)


@pytest.mark.parametrize("threads", [2, 16])
def test_the_threads_of_a_block_work_together(threads):
    """With threads that really run side by side, and a size that they do not divide."""
    toy = recalibrated(bundle(channels=2, size=SIZE - 3), anomaly_map="last", M_max=(0.1, 0.1))
    stream = [Slice(item.key, item.x0[:, :-3, :-3].copy()) for item in slices(3, 2)]
    want = segmented(toy, NumpyBackend(toy_network), stream)
    for _ in range(5):
        same(segmented(toy, on_gpu(toy_network, 2, SIZE - 3, threads=threads), stream), want)


def test_a_process_of_one_step():
    """Shorter than the host is ahead: what is uploaded must not be overwritten meanwhile."""
    toy, stream = bundle(size=SIZE, process=("ddim", 30, 30, "even")), slices(40)
    want = segmented(toy, NumpyBackend(toy_network), stream)
    same(segmented(toy, on_gpu(toy_network, 1, SIZE, 2), stream), want)


def test_the_host_launches_a_few_steps_ahead_and_not_all():
    launched, done = [], []

    def network(x_t, t):
        done.append(len(launched))
        return toy_network(x_t, t)

    backend = on_gpu(network, 1, SIZE, 2, patience=None)
    launch = HostGpu.launch
    backend.gpu.launch = lambda name, *a: (launched.append(name), launch(backend.gpu, name, *a))
    backend.network.capturable = False
    toy = bundle(size=SIZE, process=("ddim", 301, 10, "even"))
    segmented(toy, backend, slices(2))
    ahead = np.array(done[4:-6]) / 3 - np.arange(4, len(done) - 6)
    assert 3 < ahead.min()
    assert ahead.max() < 7


def test_the_smallest_batch_that_holds_the_slots_is_used():
    sizes = []

    def network(x_t, t):
        sizes.append(len(x_t))
        return toy_network(x_t, t)

    toy = bundle(size=SIZE, process=("ddim", 301, 100, "even"))
    backend = on_gpu(network, 1, SIZE, 6, network={"widths": (1, 4, 16, 64)})
    want = segmented(toy, NumpyBackend(toy_network), slices(15))
    same(segmented(toy, backend, slices(15)), want)
    # Once each to warm up; 12 slices in a batch that holds 6; the last 3 in one of 4.
    assert sizes == [16, 4, 1] + [16] * 8 + [4] * 4


def test_a_loop_is_used_again_and_captured_once():
    toy, stream = bundle(size=SIZE), slices(5)
    backend = on_gpu(toy_network, 1, SIZE)
    bound = []
    bind = backend.network.bind
    backend.network.bind = lambda *a: (bound.append(a), bind(*a))[1]
    segmenter = Segmenter(toy, backend)
    first = {result.key: result for result in segmenter.segment_slices(stream)}
    used, count = backend.gpu.used, len(bound)
    again = {result.key: result for result in segmenter.segment_slices(stream)}
    same(first, again)
    assert (backend.gpu.used, len(bound)) == (used, count)
    # Another set-up needs another loop, and the first one's memory is given back.
    segmented(toy, backend, stream, options=Options(anomaly_map="last"))
    assert backend.gpu.used == used
    assert len(bound) > count
    segmented(toy, backend, stream)
    assert backend.gpu.used == used
    backend.close()
    assert backend.gpu.used == 0


def test_streams_that_are_left_or_interleaved_disturb_nobody():
    toy, stream = early(), slices(9)
    want = segmented(toy, NumpyBackend(fading_network), stream)
    network = {"nbytes": 1000}
    segmenter = Segmenter(toy, on_gpu(fading_network, 1, SIZE, 3, network=network, patience=3))
    full = Segmenter(toy, segmenter.backend, options=Options(early_stop=False))
    left = full.segment_slices(stream)
    next(left)
    state = next(iter(segmenter.backend._in_memory)).state
    segmenter.backend.gpu.wait()
    assert memory(state.slots)["active"].any()
    left.close()
    assert not memory(state.slots)["active"].any()
    ahead, back = segmenter.segment_slices(stream), segmenter.segment_slices(stream[::-1])
    for results in zip(*itertools.zip_longest(ahead, back), strict=True):
        same({result.key: result for result in results}, want)
    # One loop is kept, with what it needs of the network.
    backend = segmenter.backend
    assert len(backend._in_memory) == 1
    same({result.key: result for result in segmenter.segment_slices(stream)}, want)
    backend.close()
    assert backend.gpu.used == 0


def test_closing_while_a_stream_is_open():
    toy = bundle(size=SIZE, process=("ddim", 301, 10, "even"))
    with Segmenter(toy, on_gpu(toy_network, 1, SIZE, 3, patience=2)) as segmenter:
        stream = segmenter.segment_slices(slices(9))
        next(stream)
    assert segmenter.backend.gpu.used == 0
    stream.close()


def test_too_little_memory_halves_the_slots_and_goes_on():
    toy, stream = early(), slices(20)
    want = segmented(toy, NumpyBackend(fading_network), stream)
    needed = on_gpu(fading_network, 1, SIZE, 20)
    segmented(toy, needed, stream)
    # The network takes 100 kB a slot, for batches of 20 and of 1: half of the second is missing.
    backend = on_gpu(
        fading_network, 1, SIZE, 20, network={"nbytes": 100_000},
        nbytes=needed.gpu.used + 2_050_000,
    )  # fmt: skip
    assert backend.notes == ()
    same(segmented(toy, backend, stream), want)
    assert backend.slots == 10
    assert backend.notes == ("the GPU's memory does not hold 20 slots: 10 were used",)
    small = on_gpu(fading_network, 1, SIZE, 20, nbytes=1000)
    with pytest.raises(DeviceMemoryError):
        segmented(toy, small, stream)
    assert small.gpu.used == 0


def test_results_stay_when_later_ones_come():
    process, stream = Process(Schedule(), 301, 60), slices(9)
    recipe = Recipe(process, 2.0, (0,), MapRule("last"))
    want = {item.key: curves for item, curves in NumpyBackend(toy_network).run(recipe, stream)}
    backend = on_gpu(toy_network, 1, SIZE, 2)
    got = {item.key: curves for item, curves in backend.run(recipe, stream)}
    for key, curves in want.items():
        np.testing.assert_array_equal(got[key].H, curves.H)


def test_impossible_slots():
    with pytest.raises(OptionsError, match="slots must be at least 1, not 0"):
        on_gpu(toy_network, 1, SIZE, 0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("which", [0, 1])
def test_a_broken_network_is_reported(wrong, channel, which):
    """Also in a modality that does not count, and where clipping would hide it."""

    def network(x_t, t):
        eps = toy_network(x_t, t)
        eps[which][(t == 241), channel, 3, 4] = wrong
        return eps

    toy = bundle(channels=2, size=SIZE, scored=("a",))
    backend = on_gpu(network, 2, SIZE, 2)
    with pytest.raises(BundleError, match="infinite or undefined"):
        segmented(toy, backend, slices(3, 2))
    # The loop has been emptied: the next stream is not disturbed.
    backend.network.function = toy_network
    want = segmented(toy, NumpyBackend(toy_network), slices(3, 2))
    same(segmented(toy, backend, slices(3, 2)), want)


def test_the_network_alone_on_arrays_of_the_host():
    gpu = HostGpu()
    denoiser = HostDenoiser(gpu, HostNetwork(gpu, toy_network, widths=(1, 4)), 4)
    rng = np.random.default_rng(0)
    for count in (1, 3, 9):
        x_t = rng.standard_normal((count, 2, SIZE, SIZE)).astype(np.float32)
        t = rng.integers(1, 1000, count)
        for got, want in zip(denoiser(x_t, t), toy_network(x_t, t), strict=True):
            np.testing.assert_array_equal(got, want)
    denoiser.free()
    assert gpu.used == 0
    broken = HostDenoiser(gpu, HostNetwork(gpu, lambda x, t: (x * np.nan, x)), 2)
    with pytest.raises(BundleError, match="infinite or undefined"):
        broken(x_t, t)


def test_maps_of_every_step_are_made_on_the_host():
    """At a multiple of t_e; the network still runs on the GPU."""
    toy, stream = bundle(size=SIZE), slices(4)
    want = segmented(toy, NumpyBackend(toy_network), stream, options=Options(t_e_ratio=0.5))
    same(segmented(toy, on_gpu(toy_network, 1, SIZE), stream, options=Options(t_e_ratio=0.5)), want)


def test_the_double_has_what_the_gpu_has():
    def methods(kind):
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    double = methods(HostGpu)
    for name, parameters in methods(Gpu).items():
        assert double[name] == parameters, name


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 7, 5), (2, 3, 1)])
def test_the_kernels_noise_is_that_of_the_loop_in_numpy(shape):
    """But for the last bit: log, sin and cos are those of other libraries."""
    for seed, key, t in ((0, 0, 1), (3, 5, 301), (2**31, 2**40, 1000)):
        got, want = kernel_noise(seed, key, t, shape), slice_noise(seed, key, t, shape)
        np.testing.assert_array_max_ulp(got, want, maxulp=1)


def test_coefficients_are_those_of_the_paper():
    process = Process(Schedule(), 301, 100)
    tables = LoopLayout(Recipe(process, 2.0, (1,)), 2, SIZE).tables()
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[[0, 100, 200, 300]]
    np.testing.assert_allclose(tables["signal"] ** 2, abar, rtol=1e-6)
    np.testing.assert_allclose(tables["noise"] ** 2, 1 - abar, rtol=1e-6)
    assert tables["place"].tolist() == [-1, 0]
