"""The guided filter, and what it does to masks: against closed forms and a transcription."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from support import bundle, head, recalibrated, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.refine.guided_filter import guided_filter, radius_pixels
from anofpdm.runtime.refine.masks import cut, drop_small
from anofpdm.runtime.refine.through_plane import gaussian_weights
from anofpdm.runtime.segmenter import Segmenter

AFFINE = np.diag([7.5, 6.0, 5.0, 1.0])
EPSILON = 1e-3
ALONE = np.ones(1)
RNG = np.random.default_rng(0)


def transcription(p, images, weights, r):
    """He, Sun and Tang's equations 5, 6 and 8, a window at a time in float64: a weighted ridge
    regression over all slices, averaged over the windows of the first. Windows reach over the
    border into the mirrored slice."""
    images, p = (np.pad(a.astype(np.float64), ((0, 0), (2 * r, 2 * r), (2 * r, 2 * r)), "reflect")
                 for a in (images, p))  # fmt: skip
    _, rows, columns = p.shape
    a, b = np.zeros((rows, columns)), np.zeros((rows, columns))
    for y in range(r, rows - r):
        for x in range(r, columns - r):
            window = np.s_[:, y - r : y + r + 1, x - r : x + r + 1]
            i, q = images[window].ravel(), p[window].ravel()
            shares = np.repeat(weights, (2 * r + 1) ** 2) / (2 * r + 1) ** 2
            mean_i, mean_q = shares @ i, shares @ q
            a[y, x] = (shares @ ((i - mean_i) * (q - mean_q))) / (
                shares @ (i - mean_i) ** 2 + EPSILON
            )
            b[y, x] = mean_q - a[y, x] * mean_i
    out = np.zeros((rows, columns))
    for y in range(2 * r, rows - 2 * r):
        for x in range(2 * r, columns - 2 * r):
            window = np.s_[y - r : y + r + 1, x - r : x + r + 1]
            out[y, x] = a[window].mean() * images[0, y, x] + b[window].mean()
    return out[2 * r : rows - 2 * r, 2 * r : columns - 2 * r]


@pytest.mark.parametrize(
    ("r", "weights"), [(1, [1.0]), (3, [1.0]), (2, [0.5, 0.25, 0.25]), (1, [0.7, 0.3])]
)
def test_it_is_the_papers_filter_over_all_slices(r, weights):
    n = len(weights)
    H = RNG.random((n, 16, 20)).astype(np.float32)
    x0 = RNG.uniform(-1, 1, (n, 1, 16, 20)).astype(np.float32)
    got = guided_filter(H, x0, np.array(weights), r)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, transcription(H, x0[:, 0], np.array(weights), r), atol=1e-6)


def test_several_modalities_give_the_mean_of_what_each_gives():
    H = RNG.random((1, 20, 24)).astype(np.float32)
    x0 = RNG.uniform(-1, 1, (1, 2, 20, 24)).astype(np.float32)
    each = [guided_filter(H, x0[:, c : c + 1], ALONE, 2) for c in range(2)]
    np.testing.assert_allclose(guided_filter(H, x0, ALONE, 2), np.mean(each, axis=0), atol=1e-6)


def test_a_flat_slice_leaves_the_mean_of_means():
    H = np.zeros((1, 20, 24), np.float32)
    H[0, 10, 12] = 1.0
    got = guided_filter(H, np.full((1, 1, 20, 24), 0.3, np.float32), ALONE, 1)
    tent = np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1]) / 81  # a 3 x 3 mean, twice
    np.testing.assert_allclose(got[8:13, 10:15], tent, atol=1e-7)
    assert got.sum() == pytest.approx(1.0)


def test_a_map_that_goes_by_the_slice_stays_as_it_is():
    """Up to the ridge: by var / (var + epsilon), near 1 where the slice varies."""
    x0 = RNG.choice([-0.9, 0.9], (1, 1, 30, 30)).astype(np.float32)
    H = 0.5 + 0.2 * x0[:, 0]
    np.testing.assert_allclose(guided_filter(H, x0, ALONE, 3), H[0], atol=2e-3)


def test_the_mask_ends_where_the_slice_has_its_edge():
    """A map blurred over a lesion's border is cut at the border, whatever the threshold."""
    columns = np.arange(64)
    x0 = np.where(columns < 30, 0.8, -0.2)[None, None, None].repeat(64, axis=2).astype(np.float32)
    H = (1 / (1 + np.exp((columns - 30) / 3)))[None].repeat(64, axis=0).astype(np.float32)
    filtered = guided_filter(H[None], x0, ALONE, 5)
    for Q in (0.35, 0.5, 0.65):
        assert np.array_equal(cut(filtered, Q)[32], columns < 30)
    assert not np.array_equal(cut(H, 0.35)[32], columns < 30)


@pytest.mark.parametrize(
    ("mm", "pixel_mm", "reach"), [(0, 1.875, 0), (10, 1.875, 5), (10, 1, 10), (0.1, 1.875, 1)]
)
def test_its_radius_is_in_mm(mm, pixel_mm, reach):
    assert radius_pixels(mm, pixel_mm) == reach


@pytest.mark.parametrize("neighbours_mm", [0.0, 12.0])
def test_maps_are_fitted_to_the_slices_they_belong_to(neighbours_mm):
    """Each to its own, the way round it came, over windows that reach through the neighbours; H and
    Q are still those of the map before."""
    options = {"flip_tta": True, "threshold_rule": "mean-with-otsu"}
    alone, plain, fitted = (
        Segmenter(recalibrated(bundle(), **options, **more), NumpyBackend(toy_network, 3))
        .segment(nib.Nifti1Image(head((24, 30, 8)), AFFINE)).slices
        for more in ({}, {"neighbours_mm": neighbours_mm},
                     {"neighbours_mm": neighbours_mm, "guided_mm": 12.0})
    )  # fmt: skip
    medians = np.stack([ndimage.median_filter(result.H, 5, mode="mirror") for result in alone])
    x0 = np.stack([result.x0[0] for result in alone])
    reach = round(12 / bundle().manifest.grid.pixel_mm)
    for k, (result, other) in enumerate(zip(plain, fitted, strict=True)):
        np.testing.assert_array_equal(result.H, other.H)
        assert result.Q == other.Q
        around = [k, *(j for j in range(len(alone)) if 0 < abs(j - k) * 5 < neighbours_mm)]
        shares = np.ones(1)
        if neighbours_mm:
            shares = gaussian_weights((np.array(around) - k) * 5.0, neighbours_mm)
        want = transcription(medians[around], x0[around], shares / shares.sum(), reach)
        np.testing.assert_allclose(other.smoothed, want, atol=1e-6)
        above = other.smoothed >= result.Q
        np.testing.assert_array_equal(other.mask, drop_small(above))
    assert any(not np.array_equal(a.mask, b.mask) for a, b in zip(plain, fitted, strict=True))


def test_several_modalities_are_fitted_to_each_that_is_scored():
    """A fixed threshold cuts the fitted map, too; its largest value is what the decision knows."""
    affine, values = AFFINE, np.stack([head((24, 30, 8), seed=k) for k in range(3)], axis=-1)
    image, options = nib.Nifti1Image(values, affine), {"M_max": (0.02, 0.02)}
    plain = bundle(channels=3, scored=("a", "c"))
    toy = recalibrated(plain, **options, flip_tta=True, neighbours_mm=12.0, guided_mm=12.0)
    results = (
        Segmenter(toy, NumpyBackend(toy_network), options=Options(Q=0.05)).segment(image).slices
    )
    full = Segmenter(recalibrated(bundle(channels=3), M_max=(0.02,) * 3), NumpyBackend(toy_network))
    x0 = np.stack([result.x0[[0, 2]] for result in full.segment(image).slices])
    views = Segmenter(recalibrated(plain, **options, flip_tta=True), NumpyBackend(toy_network))
    medians = [
        ndimage.median_filter(result.H, 5, mode="mirror") for result in views.segment(image).slices
    ]
    for k, result in enumerate(results):
        near = [j for j in range(len(results)) if 0 < abs(j - k) * 5 < 12]
        shares = gaussian_weights((np.array([k, *near]) - k) * 5.0, 12.0)
        maps = np.stack([medians[j] for j in (k, *near)])
        want = [
            transcription(maps, x0[[k, *near], c], shares / shares.sum(), 2)
            for c in range(2)
        ]  # fmt: skip
        np.testing.assert_allclose(result.smoothed, np.mean(want, axis=0), atol=1e-6)
        np.testing.assert_array_equal(result.mask, drop_small(result.smoothed >= 0.05))
        assert result.map_peak == pytest.approx(np.log(np.mean(want, axis=0).max()), rel=1e-4)


@pytest.mark.parametrize("wrong", [-1.0, 500.0, float("nan")])
def test_other_radii_are_refused(wrong):
    with pytest.raises(ValueError, match=r"guided_mm must be in 0\.\.100"):
        recalibrated(bundle(), guided_mm=wrong)


def test_the_record_of_a_mask_has_the_radius():
    segmenter = Segmenter(recalibrated(bundle(), guided_mm=10.0), NumpyBackend(toy_network))
    record = json.loads(json.dumps(segmenter.plan.as_json()))
    assert (record["guided_mm"], record["guided_pixels"]) == (10.0, round(10 / 7.5))
