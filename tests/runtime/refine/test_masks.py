import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from anofpdm.runtime.refine.masks import cut, drop_small, median


def naive_median(H):
    """The 13th of the 25 sorted values around each pixel, mirrored at the border."""
    rows, columns = H.shape

    def mirrored(i, n):
        return -i if i < 0 else 2 * (n - 1) - i if i >= n else i

    out = np.empty_like(H)
    for y in range(rows):
        for x in range(columns):
            window = [
                H[mirrored(y + i, rows), mirrored(x + j, columns)]
                for i in range(-2, 3)
                for j in range(-2, 3)
            ]
            out[y, x] = sorted(window)[12]
    return out


def same_bits(got, want):
    assert got.dtype == np.float32
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize(
    "shape", [(128, 128), (64, 64), (24, 24), (8, 8), (12, 15), (33, 40), (128, 3), (3, 3)]
)
@pytest.mark.parametrize("values", ["distinct", "ties", "zeros", "signed"])
def test_the_median_is_that_of_the_mirrored_neighbourhood(shape, values):
    """Bit by bit, in any size, square or not, with ties, and hardly larger than the window."""
    rng = np.random.default_rng(2)
    H = {
        "distinct": lambda: rng.gamma(2.0, size=shape),
        "ties": lambda: rng.integers(0, 3, shape),
        "zeros": lambda: rng.random(shape) * (rng.random(shape) < 0.3),
        "signed": lambda: rng.standard_normal(shape),
    }[values]().astype(np.float32)
    before = H.copy()
    got = median(H)
    same_bits(H, before)
    same_bits(got, ndimage.median_filter(H, size=5, mode="mirror"))
    if H.size <= 40 * 40:
        same_bits(got, naive_median(H))


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 12), st.integers(3, 12), st.integers(1, 6), st.integers(0, 2**31))
def test_the_median_of_any_size_is_the_naive_one(rows, columns, levels, seed):
    rng = np.random.default_rng(seed)
    H = (rng.integers(0, levels, (rows, columns)) / np.float32(7)).astype(np.float32)
    same_bits(median(H), naive_median(H))
    same_bits(median(H.T), naive_median(H.T))  # not contiguous


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
    mask = cut(median(H), 0.5)
    assert mask[45:55, 45:55].all()
    assert not mask[:38].any()


def test_a_component_of_just_40_pixels_is_dropped():
    mask = np.zeros((128, 128), bool)
    mask[10:15, 20:28] = True
    assert mask.sum() == 40
    assert not drop_small(mask).any()
    mask[15, 20] = True
    assert drop_small(mask).sum() == 41
