"""Averages over neighbouring slices: which, how much, when they are ready; and flipped views."""

import json
import threading
import time

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.stats import norm
from support import bundle, head, recalibrated, toy_network

from anofpdm.calibrate.windows import neighbour_windows
from anofpdm.runtime import streaming
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.errors import VolumeError
from anofpdm.runtime.method.decision import LogisticDecision
from anofpdm.runtime.method.process import Slice, SlicePosition
from anofpdm.runtime.method.threshold import otsu, threshold
from anofpdm.runtime.pipeline import Pipeline
from anofpdm.runtime.refine.masks import cut, median
from anofpdm.runtime.refine.through_plane import (
    NeighbourWindow,
    gaussian_weights,
    reach,
)
from anofpdm.runtime.segmenter import Segmenter

AFFINE = np.diag([7.5, 6.0, 5.0, 1.0])
LOGISTIC, SICK = LogisticDecision(1.35, 1.0, -3.0, 0.3), LogisticDecision(30.0, 1.0, 2.0)
X0 = np.zeros((1, 2, 2), np.float32)
BOTH_VIEWS = {"flip_tta": True, "threshold_rule": "mean-with-otsu"}


def segmenter(slots=3, logistic=LOGISTIC, **changes):
    toy = recalibrated(bundle(), decision="calibrated", logistic=logistic, **changes)
    return Segmenter(toy, NumpyBackend(toy_network, slots))


def volume(depth=12):
    return nib.Nifti1Image(head((24, 30, depth)), AFFINE)


@pytest.mark.parametrize(
    ("width_mm", "spacing_mm", "far"),
    [(10, 5, 1), (10, 5.01, 1), (10, 4.9, 2), (10, 1, 9), (10, 10, 0), (10, 30, 0), (0, 1, 0),
     (10, 0, 0), (0.3, 0.1, 2), (10, 4.9999, 1), (10, 5.0001, 1), (10, 3.3333, 2)],
)  # fmt: skip
def test_those_count_that_are_nearer_than_the_width(width_mm, spacing_mm, far):
    assert reach(width_mm, spacing_mm) == far
    inside = [k for k in range(1, 100) if spacing_mm and k * spacing_mm < 0.999 * width_mm]
    assert len(inside) == far


def test_weights_are_a_gaussian_of_that_width_at_half_its_height():
    mm = np.linspace(0, 10, 21)
    density = norm(scale=10 / (2 * np.sqrt(2 * np.log(2)))).pdf(mm)
    np.testing.assert_allclose(gaussian_weights(mm, 10.0), density / density[0])
    assert gaussian_weights(np.array([5.0]), 10.0) == pytest.approx(0.5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_slice_is_given_once_with_all_its_neighbours(data):
    """Whatever levels there are, in whatever order slices are done, and however many at a time."""
    volumes = data.draw(st.lists(st.sets(st.integers(0, 12), min_size=1), min_size=1, max_size=3))
    far = data.draw(st.integers(0, 3))
    coming = [
        Slice(10 * level, X0, number, SlicePosition(level, 2.0))
        for number, levels in enumerate(volumes)
        for level in data.draw(st.permutations(sorted(levels)))
    ]
    window, given, row = NeighbourWindow(2.0 * (far + 1)), [], []
    announced = window.announced(coming)
    slots, more = data.draw(st.integers(1, 6)), True
    while more or row:
        while more and len(row) < slots:
            item = next(announced, None)
            more = item is not None
            row += [item] if more else []
        if row:
            item = row.pop(data.draw(st.integers(0, len(row) - 1)))
            given += window.add(item, (item.volume, item.position.level))
    given += window.ready()
    assert len(given) == len(coming)
    for item, around in given:
        level, levels = item.position.level, volumes[item.volume]
        near = [one for one in sorted(levels) if 0 < abs(one - level) <= far]
        assert [found for _, found in around] == [(item.volume, one) for one in [level, *near]]
        want = [2.0 ** -((2 * abs(one - level) / (far + 1)) ** 2) for one in [level, *near]]
        assert [weight for weight, _ in around] == pytest.approx(want)
    assert not window._volumes  # nothing is kept


def test_no_more_is_kept_than_neighbours_may_ask_for():
    """Of a volume of a thousand slices, in order, eight at a time."""
    for width_mm, most in ((0.0, 1), (10.0, 2 * 4 + 2)):
        window, kept = NeighbourWindow(width_mm), []
        announced = window.announced(Slice(k, X0, 0, SlicePosition(k, 2.0)) for k in range(1000))
        for item in announced:
            list(window.add(item, item.key))
            kept.append(len(window._volumes[0].results))
        assert max(kept) <= most
        list(window.ready())
        assert not window._volumes


def test_a_level_that_comes_twice_is_refused():
    twice = [Slice(0, X0, 0, SlicePosition(3, 5.0)), Slice(1, X0, 0, SlicePosition(3, 5.0))]
    with pytest.raises(ValueError, match="level 3 comes twice in volume 0"):
        list(NeighbourWindow(10.0).announced(twice))


def test_a_slice_is_given_as_soon_as_its_neighbours_are_done():
    window = NeighbourWindow(10.0)
    items = [Slice(k, X0, 0, SlicePosition(k, 5.0)) for k in range(4)]
    slices = window.announced(items)
    for _ in items:
        next(slices)
    assert not list(window.add(items[1], 1))
    assert [one.key for one, _ in window.add(items[0], 0)] == [0]  # there is none below level 0
    assert [one.key for one, _ in window.add(items[2], 2)] == [1]
    assert [one.key for one, _ in window.add(items[3], 3)] == [2]
    assert not list(window.ready())  # 4 may come
    assert next(slices, None) is None
    assert [one.key for one, _ in window.ready()] == [3]


def test_windows_of_two_volumes_with_a_gap():
    """In the order of the slices, whatever that of their levels; a gap and a border have fewer
    neighbours, and no window reaches into the other volume."""
    levels = {0: [4, 3, 6, 2, 8, 7], 1: [3, 2]}
    places = [(volume, level) for volume in (0, 1) for level in levels[volume]]
    stream = [Slice(k, X0, volume, SlicePosition(level, 5.0))
              for k, (volume, level) in enumerate(places)]  # fmt: skip
    windows = neighbour_windows(iter(stream), 12.0)  # up to two levels away
    assert len(windows) == len(places)
    for (volume, level), window in zip(places, windows, strict=True):
        near = sorted(k for k in levels[volume] if 0 < abs(k - level) <= 2)
        assert [places[index] for _, index in window] == [(volume, k) for k in (level, *near)]
        mm = 5.0 * np.abs(np.array([0, *(k - level for k in near)]))
        np.testing.assert_allclose([w for w, _ in window], np.exp2(-((2 * mm / 12.0) ** 2)))
    # 5 is missing: 4 has 2, 3 and 6; 6 has 4, 7 and 8.
    assert [sorted(index for _, index in windows[k]) for k in (0, 2)] == [
        [0, 1, 2, 3],
        [0, 2, 4, 5],
    ]


@pytest.mark.parametrize(("spacing_mm", "width_mm"), [(0.0, 10.0), (5.0, 0.0), (10.0, 10.0)])
def test_windows_without_neighbours(spacing_mm, width_mm):
    """Where the spacing is not known, for no window at all, and where slices lie too far apart."""
    stream = [Slice(k, X0, 0, SlicePosition(k, spacing_mm)) for k in range(3)]
    assert neighbour_windows(stream, width_mm) == [[(1.0, k)] for k in range(3)]
    assert neighbour_windows([Slice(7, X0), Slice(8, X0)], width_mm) == [[(1.0, 0)], [(1.0, 1)]]
    assert neighbour_windows([], width_mm) == []


def test_maps_and_angles_are_averages_and_the_rest_is_each_slices_own():
    """At 5 mm and a width of 10 mm the weights are 1/4, 1/2, 1/4, less what is not there."""
    alone = segmenter().segment(volume()).slices
    found = segmenter(neighbours_mm=10.0).segment(volume()).slices
    levels = [one.key for one in alone]
    assert levels == list(range(levels[0], levels[0] + len(levels)))
    assert len(levels) > 6
    there = ndimage.correlate1d(np.ones(len(levels)), [0.25, 0.5, 0.25], mode="constant")

    def averaged(values):
        summed = ndimage.correlate1d(np.array(values, float), [0.25, 0.5, 0.25], 0, mode="constant")
        return (summed.T / there).T

    H = averaged([one.H for one in alone])
    for k, (one, own) in enumerate(zip(found, alone, strict=True)):
        np.testing.assert_allclose(one.H, H[k], rtol=1e-5, atol=1e-8)
        cuts = threshold(one.H[None], own.M.max(axis=0), np.array([0.01]), 0.9, 0.98)
        assert one.Q == cuts.Q != own.Q
        np.testing.assert_array_equal(one.mask, cut(median(one.H), one.Q))
        np.testing.assert_array_equal(one.M, own.M)
        assert one.t_e == own.t_e
    for name in ("alignment", "cosine"):
        want = averaged([getattr(one, name) for one in alone])
        np.testing.assert_allclose([getattr(one, name) for one in found], want, rtol=1e-6)
        assert len({getattr(one, name) for one in alone}) == len(alone)
    for of in (alone, found):  # the decision is made once, of what the slices say together
        peaks = [np.log(ndimage.median_filter(one.H, 5, mode="mirror").max()) for one in of]
        np.testing.assert_allclose([one.map_peak for one in of], peaks, rtol=1e-6)
        aligned, cosines = (np.array([getattr(o, n) for o in of]) for n in ("alignment", "cosine"))
        want = 1.35 + aligned - 3 * np.arccos(cosines) + 0.3 * np.array(peaks)
        np.testing.assert_allclose([one.log_odds for one in of], want, atol=1e-6)
        assert [one.unhealthy for one in of] == [one.log_odds >= 0 for one in of]
    assert 0 < sum(one.unhealthy for one in found) < len(found)
    chances = 1 / (1 + np.exp(-np.array([one.log_odds for one in found])))
    np.testing.assert_allclose([one.probability for one in found], chances)


def test_thin_slices_have_more_neighbours_and_thick_ones_none():
    for spacing, same in ((10.0, True), (2.5, False)):
        affine = np.diag([7.5, 6.0, spacing, 1.0])
        alone = segmenter().segment(head((24, 30, 12)), affine=affine).slices
        found = segmenter(neighbours_mm=10.0).segment(head((24, 30, 12)), affine=affine)
        alike = all(np.array_equal(a.H, b.H) for a, b in zip(alone, found.slices, strict=True))
        assert alike == same
        assert any("slices lie 10 mm apart" in note for note in found.notes) == same


def test_batches_and_other_volumes_change_nothing():
    volumes = [volume(), volume(9), nib.Nifti1Image(head((24, 30, 11), seed=3), AFFINE)]
    options = {"neighbours_mm": 12.0, **BOTH_VIEWS, "logistic": SICK}
    alone = [segmenter(1, **options).segment(one) for one in volumes]
    together = list(segmenter(5, **options).segment_many(volumes))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        for mine, theirs in zip(one.slices, other.slices, strict=True):
            np.testing.assert_array_equal(mine.H, theirs.H)
    assert any(one.mask.any() for one in alone)


def test_every_second_slice_is_flipped_for_the_network_and_back_again():
    x0 = np.random.default_rng(0).uniform(-1, 1, (4, 1, 32, 32)).astype(np.float32)
    stream_of = [Slice(k, x, 0, SlicePosition(k + 5)) for k, x in enumerate(x0)]
    got = sorted(segmenter(flip_tta=True).segment_slices(stream_of), key=lambda one: one.key)
    seen = [one[:, ::-1] if k % 2 == 0 else one for k, one in enumerate(x0)]  # odd levels
    want = sorted(
        segmenter().segment_slices(Slice(k, np.ascontiguousarray(x)) for k, x in enumerate(seen)),
        key=lambda one: one.key,
    )
    for k, (one, other) in enumerate(zip(got, want, strict=True)):
        back = slice(None, None, -1) if k % 2 == 0 else slice(None)
        np.testing.assert_array_equal(one.H, other.H[back])
        np.testing.assert_array_equal(one.mask, other.mask[back])
        np.testing.assert_array_equal(one.x0, x0[k])
        np.testing.assert_array_equal(one.M, other.M)
        assert one.log_odds == other.log_odds


def split(values, threshold):
    """The variance within the two classes, from its definition."""
    low, high = values[values < threshold], values[values >= threshold]
    return low.var() * len(low) + high.var() * len(high)


def test_otsus_threshold_leaves_the_least_variance_within_the_classes():
    rng = np.random.default_rng(0)
    for share, far in ((0.5, 6), (0.05, 8), (0.2, 3)):
        high = rng.random(4096) < share
        H = (rng.standard_normal(4096) + far * high).astype(np.float32).reshape(64, 64)
        edges = np.linspace(H.min(), H.max(), 257)
        best = min(split(H.ravel(), edge) for edge in edges[1:-1])
        step = edges[1] - edges[0]
        got = otsu(H)
        assert split(H.ravel(), got + step / 2) == pytest.approx(best, rel=1e-5)
    assert otsu(np.full((8, 8), 0.3, np.float32)) == pytest.approx(0.3)
    for low, high in ((np.float32(0.3), np.nextafter(np.float32(0.3), np.float32(1))), (0, 1e-44)):
        assert low <= otsu(np.array([low] * 9 + [high], np.float32)) <= high  # next to each other


def test_mean_with_otsu_is_the_mean_of_both_thresholds():
    plain = segmenter().segment(volume()).slices
    found = segmenter(threshold_rule="mean-with-otsu").segment(volume()).slices
    for one, other in zip(plain, found, strict=True):
        assert other.Q == pytest.approx((one.Q + otsu(one.H)) / 2)
        np.testing.assert_array_equal(other.mask, cut(median(other.H), other.Q))
    assert any(not np.array_equal(a.mask, b.mask) for a, b in zip(plain, found, strict=True))


@pytest.mark.parametrize("order", [1, -1])
def test_slices_that_arrive_one_by_one_give_the_volumes_results(order):
    ours = segmenter(neighbours_mm=12.0, **BOTH_VIEWS, logistic=SICK)
    whole, values = ours.segment(volume()), volume().get_fdata(dtype=np.float32)
    arriving = [(k, values[..., k]) for k in range(12)][::order]
    for measured in (ours.measure(volume()), None):  # spacing as measured, or as given
        slice_mm = None if measured else 5.0
        found = list(ours.segment_stream(arriving, pixel_mm=(7.5, 6.0), slice_mm=slice_mm,
                                         measurement=measured))  # fmt: skip
        assert sorted(one.index for one in found) == list(range(12))
        for one in found:
            np.testing.assert_array_equal(one.mask, whole.mask[..., one.index])
    assert whole.mask.any()
    with pytest.raises(VolumeError, match="nearer than 12 mm: give slice_mm"):
        ours.segment_stream(arriving, pixel_mm=(7.5, 6.0))
    for wrong in (-1.0, 0.0, 1e3, "far"):
        with pytest.raises(VolumeError, match=r"slices that far apart|give a length in mm"):
            ours.segment_stream(arriving, pixel_mm=(7.5, 6.0), slice_mm=wrong)


@pytest.mark.parametrize("order", [range(11, -1, -1), [1, 3, 5, 7, 9, 11, 0, 2, 4, 6, 8, 10]])
def test_what_comes_after_cancelling_has_all_its_neighbours_or_does_not_come(order):
    """A slice whose neighbours will not be done is dropped, not given without them."""
    ours = segmenter(1, neighbours_mm=10.0, logistic=SICK)
    whole = {one.key: one for one in ours.segment(volume()).slices}
    values, measured = volume().get_fdata(dtype=np.float32), ours.measure(volume())
    for stop_at in range(2, 12):
        cancel = threading.Event()

        def arriving(stop_at=stop_at, cancel=cancel):
            for count, k in enumerate(order):
                if count == stop_at:
                    cancel.set()
                yield k, values[..., k]

        found = ours.segment_stream(arriving(), pixel_mm=(7.5, 6.0), measurement=measured,
                                    cancel=cancel)  # fmt: skip
        for one in found:
            assert one.result is None or one.result.log_odds == whole[one.index].log_odds


def test_waiting_for_a_neighbour_neither_spins_nor_holds_others_back(monkeypatch):
    ours, polls, came = segmenter(neighbours_mm=10.0), [], threading.Event()
    following = streaming.Arrivals.next
    monkeypatch.setattr(
        streaming.Arrivals, "next", lambda self, wait: polls.append(1) or following(self, wait)
    )
    values, waited = volume().get_fdata(dtype=np.float32), []

    def slow():
        for k in range(12):
            if k == 8:
                assert came.wait(300), "no result before the last slices"
                before, start = len(polls), time.monotonic()
                time.sleep(0.5)
                waited.append((len(polls) - before, time.monotonic() - start))
            yield k, values[..., k]

    for one in ours.segment_stream(slow(), pixel_mm=(7.5, 6.0), measurement=ours.measure(volume())):
        if one.result:
            came.set()
    ((count, seconds),) = waited
    assert count < 30 + 2 * seconds / 0.05  # a poll every 50 ms, however long this sleep took


@pytest.mark.parametrize("slots", [2, 3])
def test_nothing_is_given_of_slices_that_were_done_when_it_was_cancelled(slots):
    """The source ends because of it, so that neighbours seem not to be coming."""
    toy = recalibrated(bundle(process=("ddim", 1, 1, "even")), neighbours_mm=10.0)
    cancelled, x0 = threading.Event(), np.random.default_rng(0).uniform(-1, 1, (2, 1, 32, 32))

    def arriving():
        for k, x in enumerate(x0.astype(np.float32)):
            yield Slice(k + 4, x, 0, SlicePosition(k + 4, 5.0))
        cancelled.set()

    ours = Segmenter(toy, NumpyBackend(toy_network, slots))
    pipeline = Pipeline(toy, ours.plan, ours.backend, ours.seed)
    assert not list(pipeline.run(arriving(), cancelled.is_set))
    cancelled = threading.Event()  # set after the last slice was taken, but not asked for
    assert len(list(ours.segment_slices(arriving()))) == 2


@pytest.mark.parametrize(
    "wrong",
    [{"threshold_rule": "otsu"}, {"neighbours_mm": -1.0}, {"neighbours_mm": float("nan")},
     {"neighbours_mm": 500.0}, {"flip_tta": "yes"}],
)  # fmt: skip
def test_calibrations_with_other_values_are_refused(wrong):
    with pytest.raises(ValueError, match=r"threshold_rule|neighbours_mm"):
        recalibrated(bundle(), **wrong)


def test_the_record_of_a_mask_has_the_refinement():
    ours = segmenter(neighbours_mm=10.0, **BOTH_VIEWS)
    record = json.loads(json.dumps(ours.plan.as_json()))
    assert (record["threshold_rule"], record["neighbours_mm"], record["flip_tta"]) == (
        "mean-with-otsu", 10.0, True,
    )  # fmt: skip
