import numpy as np
import pytest
from scipy import ndimage

from anofpdm.runtime.refine.masks import cut, drop_small, median_filter, median


def test_smooth_is_the_median_of_the_mirrored_neighbourhood():
    H = np.random.default_rng(0).random((12, 15)).astype(np.float32)
    padded = np.pad(H, 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    np.testing.assert_array_equal(median(H), np.median(windows, axis=(2, 3)))


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_the_selection_network_gives_the_median(size):
    """Of values that differ, that are equal, and of a map hardly larger than the window."""
    rng = np.random.default_rng(2)
    for H in (rng.random((40, 33)), rng.integers(0, 3, (16, 16)), rng.standard_normal((8, 8))):
        H = H.astype(np.float32)
        want = ndimage.median_filter(H, size=size, mode="mirror")
        np.testing.assert_array_equal(median_filter(H, size), want)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_a_map_is_cut_where_its_median_is_above(share):
    """Also with many values that are equal, and with zeros."""
    rng = np.random.default_rng(1)
    for H in (rng.random((128, 128)), rng.integers(0, 4, (128, 128)), rng.random((40, 64)) ** 8):
        H = H.astype(np.float32)
        Q = float(np.quantile(H, share))
        filtered = ndimage.median_filter(H, size=5, mode="mirror")
        want = drop_small((filtered >= Q) & (filtered > 0))
        np.testing.assert_array_equal(cut(median(H), Q), want)


@pytest.mark.parametrize(("side", "kept"), [(6, False), (7, True)])
def test_components_of_up_to_40_pixels_are_dropped(side, kept):
    mask = np.zeros((128, 128), bool)
    mask[20 : 20 + side, 30 : 30 + side] = True
    assert drop_small(mask).any() == kept


def test_holes_count_as_area():
    mask = np.zeros((128, 128), bool)
    mask[10:17, 10:17] = True
    mask[12:15, 12:15] = False
    assert mask.sum() == 40
    assert np.array_equal(drop_small(mask), mask)


def test_diagonal_neighbours_are_one_component():
    mask = np.zeros((128, 128), bool)
    mask[0:6, 0:6] = mask[6:12, 6:12] = True
    assert drop_small(mask).sum() == 72


def test_limit_scales_with_the_grid():
    mask = np.zeros((64, 64), bool)
    mask[0:3, 0:4] = True
    assert drop_small(mask).any()


def test_a_map_of_zeros_marks_nothing():
    assert not cut(np.zeros((128, 128), np.float32), 0.0).any()


def test_cut_keeps_what_lies_above():
    H = np.zeros((128, 128), np.float32)
    H[40:60, 40:60] = 1.0
    found = cut(median(H), 0.5)
    assert found[45:55, 45:55].all()
    assert not found[:38].any()
