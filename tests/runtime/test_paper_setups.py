"""Every set-up of the paper and the ablations, from x0 to the mask, against the transcription."""

from functools import partial

import numpy as np
import pytest
from host_gpu import on_gpu, same_noise
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from support import bundle, recalibrated, toy_network
from transcription import anomaly, mask, quantile_threshold

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.calibration import EarlyStop
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.method.anomaly_map import MapRule
from anofpdm.runtime.method.decision import LogisticDecision
from anofpdm.runtime.method.noise import slice_noise
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.segmenter import Segmenter

M_MAX = (0.02, 0.005, 0.01)


def slices(count, channels, size=24, seed=0):
    """Faint blocks, and one strong one that the toy network gets most wrong."""
    rng = np.random.default_rng(seed)
    blocks = rng.uniform(-0.3, 0.3, (count, channels, 3, 3))
    blocks[:, :, 1, 1] = rng.uniform(0.7, 0.95, (count, channels))
    x0 = np.kron(blocks, np.ones((size // 3, size // 3)))
    x0 = np.pad(x0, ((0, 0), (0, 0), (0, size % 3), (0, size % 3)), mode="edge")
    return [Slice(i, x) for i, x in enumerate(x0.astype(np.float32))]


def network(x_t, t):
    """The toy network, whose guidance pulls where a slice is bright over several pixels."""
    shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    around = sum(np.roll(x_t, shift, axis=(-2, -1)) for shift in shifts) / x_t.dtype.type(9)
    _, eps_null = toy_network(x_t, t)
    share = (np.asarray(t, x_t.dtype) / 1000)[:, None, None, None]
    pull = (0.05 + np.exp(-((8 * share - 1.2) ** 2))) * np.square(around)
    return (eps_null + 2 * pull).astype(x_t.dtype), eps_null


def agree(toy, options, stream, *, stop=None, seed=3, slots=2, tolerance=1e-4):
    """Compare all results of a Segmenter, on the host and on a GPU, with the float64
    transcription."""
    channels, size = stream[0].x0.shape[:2]
    on_a_gpu = on_gpu(network, channels, size, slots, network={"capturable": slots != 2})
    for backend in (on_a_gpu, NumpyBackend(network, slots)):
        segmenter = Segmenter(toy, backend, options=options, seed=seed)
        results = agrees(segmenter, toy, stream, stop, tolerance)
    return results


def agrees(segmenter, toy, stream, stop, tolerance):
    plan, calibration, seed = segmenter.plan, segmenter.plan.calibration, segmenter.seed
    M_max = calibration.M_max
    results = {result.key: result for result in segmenter.segment_slices(stream)}
    assert len(results) == len(stream)
    for item in stream:
        got = results[item.key]
        want = anomaly(
            item.x0,
            partial(slice_noise, seed, item.key, shape=item.x0.shape),
            network,
            calibration.w,
            [int(t) for t in plan.process.timesteps],
            plan.process.clip,
            toy.manifest.scored_channels,
            plan.process.encoding,
            plan.rule.anomaly_map,
            plan.rule.sub_map,
            plan.rule.t_e_ratio,
            stop,
        )
        for name in ("M", "MSE_h", "MSE_0"):
            np.testing.assert_allclose(getattr(got, name), want[name], rtol=1e-4, err_msg=name)
        H = want["H"].mean(axis=0)
        np.testing.assert_allclose(got.H, H, rtol=tolerance, atol=tolerance * H.max())
        assert got.t_e.tolist() == want["t_e"].tolist()
        assert got.cosine == pytest.approx(want["cos"], abs=1e-6)
        assert got.alignment == pytest.approx(want["alignment"], abs=1e-4)
        largest = ndimage.median_filter(H, 5, mode="mirror").max()
        assert got.map_peak == pytest.approx(np.log(max(largest, 1e-6)), abs=10 * tolerance)
        Q = quantile_threshold(want["H"], want["M"], M_max) if plan.Q is None else plan.Q
        assert pytest.approx(Q, rel=tolerance) == got.Q
        smallest = 40 * H.size / 128**2
        if not np.array_equal(got.mask, mask(H, Q, smallest)):
            # Only pixels as near to the threshold as maps and thresholds agree.
            margin = 3 * tolerance * max(H.max(), Q)
            assert (mask(H, Q + margin, smallest) <= got.mask).all()
            assert (got.mask <= mask(H, Q - margin, smallest)).all()
    return results


@pytest.mark.parametrize("anomaly_map", ["aggregate", "last"])
@pytest.mark.parametrize("encoding", ["ddim", "ddpm"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("channels", "scored"), [(1, "a"), (3, "ac")])
@pytest.mark.parametrize(("L", "stride"), [(30, 1), (601, 100)])
def test_the_four_set_ups(anomaly_map, encoding, clip, channels, scored, L, stride):
    toy = bundle(channels=channels, process=(encoding, L, stride, "even"), clip=clip,
                 scored=tuple(scored))  # fmt: skip
    toy = recalibrated(toy, w=8.0, M_max=M_MAX[: len(scored)], anomaly_map=anomaly_map)
    results = agree(toy, Options(), slices(3, channels))
    assert any(result.mask.any() for result in results.values())


def test_set_ups_differ():
    """So that the comparison above could not pass with one of them in place of all."""
    stream, maps = slices(2, 1), {}
    for encoding in ("ddim", "ddpm"):
        toy = bundle(process=(encoding, 301, 60, "even"))
        for name in ("aggregate", "last"):
            segmenter = Segmenter(toy, NumpyBackend(network), options=Options(anomaly_map=name))
            maps[encoding, name] = np.stack([r.H for r in segmenter.segment_slices(stream)])
    stacks = list(maps.values())
    for i, maps_of_one in enumerate(stacks):
        for other in stacks[:i]:
            assert np.abs(maps_of_one - other).max() > 0.01 * np.abs(maps_of_one).max()


@pytest.mark.parametrize("sub_map", ["gradient", "gradient-normalised"])
@pytest.mark.parametrize("anomaly_map", ["aggregate", "last"])
def test_gradient_maps(sub_map, anomaly_map):
    # Dividing by B_1^2 = 1e-8 brings the rounding of float32 predictions up.
    tolerance = 1e-4 if sub_map == "gradient" else 2e-3
    options = Options(sub_map=sub_map, anomaly_map=anomaly_map)
    agree(bundle(channels=2), options, slices(2, 2), tolerance=tolerance)


@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.7, 1.15, 1.5, 3.0])
@pytest.mark.parametrize("anomaly_map", ["aggregate", "last"])
def test_ratios_of_t_e(ratio, anomaly_map):
    options = Options(t_e_ratio=ratio, anomaly_map=anomaly_map)
    agree(bundle(channels=2), options, slices(2, 2))
    # With every timestep visited, multiples of t_e are visited themselves.
    agree(bundle(channels=2, process=("ddim", 40, 1, "even")), options, slices(2, 2))


@pytest.mark.parametrize(("ratio", "t_e", "t"), [(0.7, 90, 63), (0.58, 50, 29), (1.15, 100, 115)])
def test_a_multiple_of_t_e_is_not_missed_by_rounding(ratio, t_e, t):
    assert ratio * t_e < t  # in floating point
    stored = MapRule("last", t_e_ratio=ratio).new_map()
    for step in range(1, 131):
        stored.add(step, np.full((1, 2, 2), step, np.float32), np.array([True]))
    assert (stored.H(np.array([t_e])) == t).all()


def test_fixed_threshold():
    agree(bundle(), Options(Q=0.3), slices(2, 1))


def test_log_snr_spacing():
    agree(bundle(process=("ddim", 601, 60, "log-snr")), Options(), slices(2, 1))


@pytest.mark.parametrize("encoding", ["ddim", "ddpm"])
@pytest.mark.parametrize("slots", [1, 3, 16])
def test_early_stop(encoding, slots):
    M_max, logistic = (0.02, 0.005), LogisticDecision(1.0, 0.0, 0.0)
    stop = EarlyStop(0.9, 2, 2.0, logistic, M_max, 1.0, 0.9, 0.9, 5.0, 21)
    toy = recalibrated(bundle(channels=2, process=(encoding, 601, 30, "even")), early_stop=stop)
    results = agree(toy, Options(), slices(5, 2), stop=(0.9, 2), slots=slots)
    assert any(len(result.M) < 21 for result in results.values())
    full = agree(toy, Options(early_stop=False), slices(5, 2), slots=slots)
    assert all(len(result.M) == 21 for result in full.values())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    channels=st.integers(1, 4),
    size=st.sampled_from([8, 16, 24]),
    L=st.integers(1, 1000),
    stride=st.integers(1, 400),
    w=st.floats(0, 60),
    encoding=st.sampled_from(["ddim", "ddpm"]),
    spacing=st.sampled_from(["even", "log-snr"]),
    anomaly_map=st.sampled_from(["aggregate", "last"]),
    clip=st.booleans(),
    slots=st.integers(1, 5),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_shape_length_stride_and_w(
    channels, size, L, stride, w, encoding, spacing, anomaly_map, clip, slots, seed
):
    """Curves and maps to 1e-4 of the largest value, t_e exactly, whatever the options.

    At most 25 steps, to save time. Left out are draws where two timesteps have M within 1e-4 of
    each other at the top: there, rounding decides t_e.
    """
    stride = max(stride, L // 25 + 1)
    toy = bundle(channels=channels, size=size, process=(encoding, L, stride, spacing), clip=clip)
    toy = recalibrated(toy, w=w, anomaly_map=anomaly_map)
    segmenter = Segmenter(toy, NumpyBackend(network, slots), seed=seed)
    stream = slices(2, channels, size, seed)
    timesteps = [int(t) for t in segmenter.plan.process.timesteps]
    on_a_gpu = on_gpu(network, channels, size, slots, patience=1 + seed % 5)
    gpu = {got.key: got for got in Segmenter(toy, on_a_gpu, seed=seed).segment_slices(stream)}
    with same_noise():
        results = list(segmenter.segment_slices(stream))
    for got in results:
        item, same = stream[got.key], gpu[got.key]
        np.testing.assert_array_equal(same.H, got.H)
        np.testing.assert_allclose(same.M, got.M, rtol=1e-12)
        noise = partial(slice_noise, seed, item.key, shape=item.x0.shape)
        want = anomaly(item.x0, noise, network, w, timesteps, clip, None, encoding, anomaly_map)
        assert got.M.shape == (len(timesteps), channels)
        for name in ("M", "MSE_h", "MSE_0"):
            largest = want[name].max()
            np.testing.assert_allclose(getattr(got, name), want[name], atol=1e-4 * largest, rtol=0)
        if len(timesteps) > 1:
            second, first = np.sort(want["M"], axis=0)[-2:]
            assume((first - second > 1e-4 * first).all())
        assert got.t_e.tolist() == want["t_e"].tolist()
        H = want["H"].mean(axis=0)
        np.testing.assert_allclose(got.H, H, atol=1e-4 * H.max(), rtol=0)
        assert got.cosine == pytest.approx(want["cos"], abs=1e-5)
