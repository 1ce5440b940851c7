"""The guided filter, and what it does to masks: beside closed forms and a transcription."""

import json

import nibabel as nib
import numpy as np
import pytest
from support import bundle, head, recalibrated, toy_network

from anofpdm.runtime.backend import HostBackend
from anofpdm.runtime.guided import Guide, guided_filter, radius
from anofpdm.runtime.postprocess import cut, drop_small, smooth
from anofpdm.runtime.segmenter import Segmenter

AFFINE = np.diag([7.5, 6.0, 5.0, 1.0])
EPSILON = 1e-3
RNG = np.random.default_rng(0)
FLAT = np.full((1, 20, 24), 0.3, np.float32)


def transcription(p, image, r):
    """He, Sun and Tang's equations 5, 6 and 8, a window at a time in float64; windows reach over
    the border into the mirrored image."""
    image, p = (np.pad(a.astype(np.float64), 2 * r, mode="reflect") for a in (image, p))
    a, b = np.zeros_like(p), np.zeros_like(p)
    rows, columns = p.shape
    for y in range(r, rows - r):
        for x in range(r, columns - r):
            window = np.s_[y - r : y + r + 1, x - r : x + r + 1]
            i, q = image[window].ravel(), p[window].ravel()
            a[y, x] = ((i - i.mean()) @ (q - q.mean()) / i.size) / (i.var() + EPSILON)
            b[y, x] = q.mean() - a[y, x] * i.mean()
    out = np.zeros_like(p)
    for y in range(2 * r, rows - 2 * r):
        for x in range(2 * r, columns - 2 * r):
            window = np.s_[y - r : y + r + 1, x - r : x + r + 1]
            out[y, x] = a[window].mean() * image[y, x] + b[window].mean()
    return out[2 * r : rows - 2 * r, 2 * r : columns - 2 * r]


@pytest.mark.parametrize("r", [1, 3])
def test_it_is_the_papers_filter(r):
    H = RNG.random((20, 24)).astype(np.float32)
    x0 = RNG.uniform(-1, 1, (1, 20, 24)).astype(np.float32)
    got = guided_filter(H, Guide(x0, r))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, transcription(H, x0[0], r), atol=1e-6)


def test_several_modalities_give_the_mean_of_what_each_gives():
    H = RNG.random((20, 24)).astype(np.float32)
    x0 = RNG.uniform(-1, 1, (2, 20, 24)).astype(np.float32)
    each = [guided_filter(H, Guide(x0[c : c + 1], 2)) for c in range(2)]
    np.testing.assert_allclose(guided_filter(H, Guide(x0, 2)), np.mean(each, axis=0), atol=1e-6)


def test_a_flat_slice_leaves_the_mean_of_means():
    H = np.zeros((20, 24), np.float32)
    H[10, 12] = 1.0
    got = guided_filter(H, Guide(FLAT, 1))
    tent = np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1]) / 81  # a 3 x 3 mean, twice
    np.testing.assert_allclose(got[8:13, 10:15], tent, atol=1e-7)
    assert got.sum() == pytest.approx(1.0)


def test_a_map_that_goes_by_the_slice_stays_as_it_is():
    """Up to the ridge: by var / (var + epsilon), near 1 where the slice varies."""
    x0 = RNG.choice([-0.9, 0.9], (1, 30, 30)).astype(np.float32)
    H = 0.5 + 0.2 * x0[0]
    np.testing.assert_allclose(guided_filter(H, Guide(x0, 3)), H, atol=2e-3)


def test_the_mask_ends_where_the_slice_has_its_edge():
    """A map blurred over a lesion's border is cut at the border, whatever the threshold."""
    columns = np.arange(64)
    x0 = np.where(columns < 30, 0.8, -0.2)[None, None].repeat(64, axis=1).astype(np.float32)
    H = (1 / (1 + np.exp((columns - 30) / 3)))[None].repeat(64, axis=0).astype(np.float32)
    for Q in (0.35, 0.5, 0.65):
        guided = cut(H, Q, Guide(x0, 5))
        assert np.array_equal(guided[32], columns < 30)
    assert not np.array_equal(cut(H, 0.35)[32], columns < 30)


@pytest.mark.parametrize(
    ("mm", "pixel_mm", "pixels"), [(0, 1.875, 0), (10, 1.875, 5), (10, 1, 10), (0.1, 1.875, 1)]
)
def test_its_radius_is_in_mm(mm, pixel_mm, pixels):
    assert radius(mm, pixel_mm) == pixels


def test_maps_are_fitted_to_the_slice_they_belong_to():
    """Each to its own, the way round it came, with its neighbours' maps in the average; Q is still
    that of the map before."""
    options = {"neighbours_mm": 12.0, "mirrored": True, "threshold": "half-way"}
    image = nib.Nifti1Image(head((24, 30, 8)), AFFINE)
    plain, fitted = (
        Segmenter(recalibrated(bundle(), **options, **more), HostBackend(toy_network, 3))
        for more in ({}, {"guided_mm": 12.0})
    )
    size = fitted.bundle.manifest.grid.pixel_mm
    differ = 0
    for one, other in zip(plain.segment(image).slices, fitted.segment(image).slices, strict=True):
        np.testing.assert_array_equal(one.H, other.H)
        assert one.Q == other.Q
        guide = Guide(one.x0, round(12 / size))
        above = guided_filter(smooth(one.H), guide) >= one.Q
        np.testing.assert_array_equal(other.mask, drop_small(above))
        differ += not np.array_equal(one.mask, other.mask)
    assert differ


@pytest.mark.parametrize("wrong", [-1.0, 500.0, float("nan")])
def test_other_radii_are_refused(wrong):
    with pytest.raises(ValueError, match=r"guided_mm must be in 0\.\.100"):
        recalibrated(bundle(), guided_mm=wrong)


def test_it_is_said_with_what_decides_a_mask():
    ours = Segmenter(recalibrated(bundle(), guided_mm=10.0), HostBackend(toy_network))
    assert json.loads(json.dumps(ours.setup.as_json()))["guided_mm"] == 10.0
