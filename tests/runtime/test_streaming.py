"""Slices that arrive one by one: the results of the volume, cancelling, and what may be wrong."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
from support import bundle, head, recalibrated, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.errors import VolumeError
from anofpdm.runtime.segmenter import Segmenter

AFFINE = np.diag([7.5, 6.0, 5.0, 1.0])
PIXEL = (7.5, 6.0)


@pytest.fixture
def segmenter():
    return Segmenter(bundle(), NumpyBackend(toy_network, 3))


@pytest.fixture
def volume():
    return nib.Nifti1Image(head((24, 30, 12)), AFFINE)


def planes(volume):
    values = volume.get_fdata(dtype=np.float32)
    return [(k, values[..., k]) for k in range(values.shape[2])]


def test_with_the_volumes_measure_the_results_are_the_volumes(segmenter, volume):
    whole = segmenter.segment(volume)
    measured = segmenter.measure(volume)
    # In any order: a slice's noise depends on its index alone.
    arriving = planes(volume)[::-1]
    stream = segmenter.segment_stream(iter(arriving), pixel_mm=PIXEL, measurement=measured)
    results = {streamed.index: streamed for streamed in stream}
    assert sorted(results) == list(range(12))
    levels = {result.key: result for result in whole.slices}
    assert {k for k in results if results[k].result} == set(levels)
    anomaly_map = whole.anomaly_map().get_fdata()
    for k, streamed in results.items():
        np.testing.assert_array_equal(streamed.mask, whole.mask[..., k])
        np.testing.assert_allclose(streamed.anomaly_map, anomaly_map[..., k], atol=1e-6)
        if streamed.result:
            np.testing.assert_array_equal(streamed.result.x0, levels[k].x0)
            np.testing.assert_allclose(streamed.result.M, levels[k].M, rtol=1e-5)
    assert sum(streamed.mask.sum() for streamed in results.values()) > 0


def test_healthy_slices_stay_empty_unless_chosen(volume):
    toy = Segmenter(recalibrated(bundle(), Cos_w=-2.0), NumpyBackend(toy_network))
    alike = {"pixel_mm": PIXEL, "measurement": toy.measure(volume)}
    healthy = list(toy.segment_stream(planes(volume), **alike))
    assert not any(
        streamed.result.unhealthy or streamed.mask.any() for streamed in healthy if streamed.result
    )
    every = toy.segment_stream(planes(volume), every_slice=True, **alike)
    assert any(streamed.mask.any() for streamed in every)


@pytest.mark.parametrize("axes", ["RA", "LA", "AR", "PL", "PR", "LP"])
def test_results_lie_on_the_pixels_of_the_images(segmenter, volume, axes):
    """Rows and columns that lead elsewhere are the same head."""
    measured = segmenter.measure(volume)
    want = list(segmenter.segment_stream(planes(volume), pixel_mm=PIXEL, measurement=measured))

    def turned(image):
        if axes[0] in "AP":
            image, (x, y) = image.T, (axes[1], axes[0])
            return image[:: -1 if y == "P" else 1, :: -1 if x == "L" else 1]
        return image[:: -1 if axes[0] == "L" else 1, :: -1 if axes[1] == "P" else 1]

    stored = [(k, turned(image)) for k, image in planes(volume)]
    spacing = PIXEL if axes[0] in "RL" else PIXEL[::-1]
    got = list(segmenter.segment_stream(stored, pixel_mm=spacing, axes=axes, measurement=measured))
    for streamed, other in zip(want, got, strict=True):
        assert streamed.index == other.index
        np.testing.assert_array_equal(turned(streamed.mask), other.mask)
        np.testing.assert_array_equal(turned(streamed.anomaly_map), other.anomaly_map)


def test_results_come_while_others_are_still_awaited(volume):
    """The source waits for the first result before it goes on, with room for more in the slots."""
    segmenter, came = Segmenter(bundle(), NumpyBackend(toy_network, 20)), threading.Event()

    def slow():
        for k, image in planes(volume):
            if k == 9:
                assert came.wait(300), "no result before the last slices"
            yield k, image

    measured, seen = segmenter.measure(volume), []
    for streamed in segmenter.segment_stream(slow(), pixel_mm=PIXEL, measurement=measured):
        seen.append(streamed.index)
        came.set()
    assert sorted(seen) == list(range(12))


def test_without_a_measure_all_slices_are_waited_for_and_measured(segmenter, volume):
    """Air before the head and all: the results are the volume's."""
    rng = np.random.default_rng(0)
    values = volume.get_fdata(dtype=np.float32) + rng.random((24, 30, 12)).astype(np.float32)
    air = rng.random((24, 30, 6)).astype(np.float32)
    volume = nib.Nifti1Image(np.concatenate([air, values], -1), AFFINE)
    whole = segmenter.segment(volume)
    for streamed in segmenter.segment_stream(planes(volume), pixel_mm=PIXEL):
        np.testing.assert_array_equal(streamed.mask, whole.mask[..., streamed.index])


def test_as_many_slices_as_settle_says_are_measured(segmenter, volume):
    arriving = planes(volume)[2:]
    middle = nib.Nifti1Image(volume.get_fdata(dtype=np.float32)[..., 2:7], AFFINE)
    alike = {"pixel_mm": PIXEL, "measurement": segmenter.measure(middle)}
    want = list(segmenter.segment_stream(arriving, **alike))
    got = list(segmenter.segment_stream(arriving, pixel_mm=PIXEL, settle=5))
    few = list(segmenter.segment_stream(arriving[:5], pixel_mm=PIXEL, settle=9))
    for streamed, other in zip(want, got, strict=True):
        np.testing.assert_array_equal(streamed.mask, other.mask)
    for streamed, other in zip(
        want[:5], sorted(few, key=lambda streamed: streamed.index), strict=True
    ):
        np.testing.assert_array_equal(streamed.mask, other.mask)


def test_what_was_measured_must_have_the_slices_field_of_view(segmenter, volume):
    measured = segmenter.measure(volume)
    with pytest.raises(VolumeError, match="same field of view"):
        segmenter.segment_stream([], pixel_mm=(7.5, 7.5), measurement=measured)
    cropped = [(0, planes(volume)[5][1][:20])]
    with pytest.raises(VolumeError, match="than the measured volume"):
        list(segmenter.segment_stream(cropped, pixel_mm=PIXEL, measurement=measured))


def test_cancelling_stops_at_the_next_step(volume):
    cancel, after = threading.Event(), []

    def watched(x_t, t):
        if cancel.is_set():
            after.append(t)
        if t[0] > 60:
            cancel.set()
        return toy_network(x_t, t)

    segmenter = Segmenter(bundle(process=("ddim", 301, 1, "even")), NumpyBackend(watched, 3))
    stream = segmenter.segment_stream(planes(volume), pixel_mm=PIXEL, cancel=cancel)
    assert list(stream) == []
    assert not after


@pytest.mark.parametrize("how", ["event", "close"])
def test_cancelling_ends_it_and_fetches_no_more(segmenter, volume, how):
    fetched, cancel = [], threading.Event()

    def endless():
        for k in range(10_000):
            fetched.append(k)
            yield k, planes(volume)[5][1]

    before = threading.active_count()
    stream = segmenter.segment_stream(endless(), pixel_mm=PIXEL, cancel=cancel,
                                      measurement=segmenter.measure(volume))  # fmt: skip
    next(stream)
    if how == "event":
        cancel.set()
        assert list(stream) == []
    else:
        stream.close()
    deadline = time.monotonic() + 300
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before
    assert len(fetched) < 40


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([(0, np.ones((4, 5, 6, 7)))], "shape"),
        ([(0, np.full((24, 30), np.nan))], "without NaN"),
        ([(0, "text")], "real numbers"),
        ([(0, np.ones((24, 30), complex))], "real numbers"),
        ([7], "index, image"),
        ([None], "index, image"),
        ([(1.5, np.ones((24, 30)))], "index, image"),
        ([("a", np.ones((24, 30)))], "index, image"),
        ([(-1, np.ones((24, 30)))], "below 0"),
        ([(3, np.ones((24, 30))), (3, np.ones((24, 30)))], "come before"),
        ([(3, np.ones((24, 30))), (4, np.ones((30, 24)))], "another shape"),
        ([(k, np.zeros((24, 30))) for k in range(9)], "shows no head"),
    ],
)
def test_bad_slices(segmenter, slices, message):
    with pytest.raises(VolumeError, match=message):
        list(segmenter.segment_stream(slices, pixel_mm=PIXEL))


@pytest.mark.parametrize("settled", [True, False])
def test_what_the_source_raises_is_raised_when_what_came_before_is_done(segmenter, volume, settled):
    def broken():
        yield from planes(volume)[:7]
        raise ConnectionError("the scanner went away")

    seen, measured = [], segmenter.measure(volume) if settled else None
    stream = segmenter.segment_stream(broken(), pixel_mm=PIXEL, measurement=measured)
    with pytest.raises(ConnectionError, match="went away"):
        seen.extend(streamed.index for streamed in stream)
    assert sorted(seen) == list(range(7))


def test_the_source_may_use_its_memory_again(segmenter, volume):
    measured, frame = segmenter.measure(volume), np.zeros((24, 30), np.float32)

    def reusing():
        for k, image in planes(volume):
            frame[...] = image
            yield k, frame
            frame[...] = 0

    alike = {"pixel_mm": PIXEL, "measurement": measured}
    want = {
        streamed.index: streamed for streamed in segmenter.segment_stream(planes(volume), **alike)
    }
    for streamed in segmenter.segment_stream(reusing(), **alike):
        np.testing.assert_array_equal(streamed.anomaly_map, want[streamed.index].anomaly_map)


@pytest.mark.parametrize(
    "wrong",
    [{"axes": "RR"}, {"axes": "SA"}, {"axes": None}, {"axes": "R"}, {"measurement": "x"}]
    + [
        {"pixel_mm": mm}
        for mm in ((0, 1), (200, 200), (0.001, 1), 2.0, None, "ab", (2,), (2, 2, 2))
    ],
)
def test_bad_geometry(segmenter, volume, wrong):
    with pytest.raises(VolumeError):
        list(segmenter.segment_stream(planes(volume), **{"pixel_mm": PIXEL, **wrong}))


def test_a_pool_of_threads_shares_one_segmenter(segmenter):
    volumes = [nib.Nifti1Image(head((24, 30, 6), seed=i), AFFINE) for i in range(8)]
    want = [segmenter.segment(volume) for volume in volumes]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(segmenter.segment, volumes))
    for alone, other in zip(want, got, strict=True):
        np.testing.assert_array_equal(alone.mask, other.mask)
        for a, b in zip(alone.slices, other.slices, strict=True):
            np.testing.assert_array_equal(a.M, b.M)
