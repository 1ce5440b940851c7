"""A slice is brought onto the grid by itself, and is the same as in its volume."""

import numpy as np
import pytest
import whole_volume
from support import head

from anofpdm.export.checkpoints import reference_grid
from anofpdm.runtime.errors import VolumeError
from anofpdm.runtime.volume import slabs
from anofpdm.runtime.volume.grid import Grid, measure, shows_head, slice_to_grid, to_grid
from anofpdm.runtime.volume.intensity import measure_scale


def some_volume(seed):
    """A head among noise, of random shape, spacing, modalities, intensities and memory layout."""
    rng = np.random.default_rng(seed)
    shape = (*rng.integers(40, 130, 2), int(rng.integers(3, 30)))
    volume = np.stack([head(shape, lesion=bool(c % 2), seed=seed + c) for c in range(1 + seed % 3)])
    volume += rng.normal(0, 3, volume.shape)
    volume *= 10 ** rng.uniform(-3, 3)
    volume += rng.uniform(-2, 2) * volume.std()
    if seed % 2:
        volume = np.rint(volume * 100 / volume.std())
    volume = volume.astype(np.float32)
    if seed % 4 < 2:
        volume = np.ascontiguousarray(volume.transpose(0, 3, 2, 1)).transpose(0, 3, 2, 1)
    return volume, tuple(float(mm) for mm in rng.uniform(160, 260, 3) / shape)


@pytest.mark.parametrize("seed", range(24))
def test_slabs_and_slices_give_the_numbers_of_the_whole_volume(seed, monkeypatch):
    """Statistics and decisions to the last bit, pixels within what the order of summation may
    change: see :mod:`whole_volume`."""
    monkeypatch.setattr(slabs, "_SLAB_VOXELS", 20_000)
    volume, voxel_mm = some_volume(seed)
    grid = [Grid(), reference_grid(), Grid(64, 3.75), Grid(128, 1.0, center="image")][seed % 4]
    want, placement, bound = whole_volume.to_grid(volume, voxel_mm, grid)
    slices, result = to_grid(volume, voxel_mm, grid)
    assert 0 < len(want)
    assert result.center == placement.center
    assert np.array_equal(result.levels, placement.levels)
    assert (result.shape, result.voxel_mm) == (placement.shape, placement.voxel_mm)
    assert slices.dtype == want.dtype == np.float32
    assert slices.shape == want.shape
    # In double precision, in which the difference of two such pixels is exact.
    assert (np.abs(slices.astype(np.float64) - want) <= bound).all()
    # Pixels are in [-1, 1]: the bound lets through nothing but rounding.
    assert bound.max() < 1e-5


@pytest.mark.parametrize("seed", range(8))
def test_slice_by_slice_is_bit_identical_to_the_volume(seed):
    volume, voxel_mm = some_volume(seed)
    grid = reference_grid() if seed % 2 else Grid()
    want, placement = to_grid(volume, voxel_mm, grid)
    measured = measure(volume, grid)
    assert measured.center == placement.center
    planes = {}
    for level in reversed(range(volume.shape[3])):
        plane = np.ascontiguousarray(volume[..., level])
        if shows_head(plane, voxel_mm[:2], grid, measured):
            planes[level] = slice_to_grid(plane, voxel_mm[:2], grid, measured)
    assert sorted(planes) == placement.levels.tolist()
    for i, level in enumerate(placement.levels):
        assert planes[level].tobytes() == want[i].tobytes()


def test_a_measurement_holds_for_slices_that_it_has_not_seen():
    volume, _ = some_volume(3)
    whole, half = measure(volume, Grid()), measure(volume[..., ::2], Grid())
    assert half.scales[0].top == pytest.approx(whole.scales[0].top, rel=0.02)
    assert half.center == pytest.approx(whole.center, abs=1.5)


def test_an_empty_slice_shows_no_head():
    volume = head((40, 44, 8), lesion=False)
    measured = measure(volume[None], Grid(32, 7.5))
    empty = np.zeros((1, 40, 44), np.float32)
    assert not shows_head(empty, (6.0, 6.0), Grid(32, 7.5), measured)
    assert (slice_to_grid(empty, (6.0, 6.0), Grid(32, 7.5), measured) == -1).all()


@pytest.mark.parametrize("values", [(-3e38, 3e38), (0, 1e38, 3e38)])
def test_intensities_beyond_single_precision_are_refused(values):
    volume = np.resize(np.float32(values), (12, 12, 5))
    with pytest.raises(VolumeError, match="single precision"):
        measure_scale(volume, 2.5)
