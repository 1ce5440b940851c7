import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from support import head

from anofpdm.export.checkpoints import reference_grid
from anofpdm.runtime.errors import VolumeError
from anofpdm.runtime.volume.grid import Grid, GridPlacement, from_grid, masks_to_grid, to_grid
from anofpdm.runtime.volume.reader import read_volume

GRID = Grid(32, 7.5)


def test_background_median_and_range():
    volume = head((40, 44, 8), lesion=False)
    slices, _ = to_grid(volume[None], (6.0, 6.0, 5.0), GRID)
    assert slices.shape[1:] == (1, 32, 32)
    assert slices.dtype == np.float32
    assert slices.min() == -1
    assert slices.max() <= 1
    # The foreground's median goes to 2 / 2.5 - 1.
    assert np.median(slices[slices > -0.9]) == pytest.approx(-0.2, abs=0.03)


@pytest.mark.parametrize(("gain", "offset"), [(0.01, 0.0), (37.0, 0.0), (1.0, -3.5), (5.0, 1000.0)])
def test_gain_and_offset_of_the_scanner_do_not_matter(gain, offset):
    volume = head()
    want, _ = to_grid(volume[None], (7.5, 7.5, 5.0), GRID)
    got, _ = to_grid((gain * volume + offset)[None].astype(np.float32), (7.5, 7.5, 5.0), GRID)
    np.testing.assert_allclose(got, want, atol=2e-3)


def test_halving_the_resolution_averages():
    """With voxels half as wide, a triangle of weights 1/4, 1/2, 1/4 is centred between two."""
    line = np.arange(32, dtype=np.float32)
    mask = np.broadcast_to((line >= 16)[:, None, None], (32, 32, 1)).copy()
    placement = GridPlacement((32, 32, 1), (1.0, 1.0), (15.5, 15.5), np.array([0]))
    small = masks_to_grid(mask, Grid(16, 2.0), placement)[0]
    assert small[8:].all()
    assert not small[:8].any()


def test_masks_come_back_where_they_were():
    volume = np.zeros((90, 110, 5), bool)
    x, y = np.indices((90, 110))
    volume[..., 2] = np.hypot(x - 44.3, y - 64.7) < 17.2
    placement = GridPlacement((90, 110, 5), (1.0, 1.0), (44.0, 54.0), np.array([1, 2, 3]))
    grid = Grid(64, 2.0)
    back = from_grid(masks_to_grid(volume, grid, placement), grid, placement) >= 0.5
    assert back.shape == volume.shape
    assert not back[..., [0, 1, 3, 4]].any()
    overlap = 2 * (back & volume).sum() / (back.sum() + volume.sum())
    assert overlap > 0.95
    centers = [np.argwhere(mask).mean(axis=0) for mask in (back, volume)]
    np.testing.assert_allclose(centers[0], centers[1], atol=0.35)


def test_anisotropic_voxels_keep_their_shape():
    volume = np.zeros((50, 100, 1), bool)
    volume[20:30, 40:60] = True  # 20 mm x 20 mm
    placement = GridPlacement((50, 100, 1), (2.0, 1.0), (24.5, 49.5), np.array([0]))
    mask = masks_to_grid(volume, Grid(64, 1.0), placement)[0]
    assert mask.any(axis=1).sum() == pytest.approx(20, abs=1)
    assert mask.any(axis=0).sum() == pytest.approx(20, abs=1)


def test_head_is_centred_and_empty_slices_are_left_out():
    volume = np.zeros((64, 64, 9), np.float32)
    volume[5:25, 30:60, 2:7] = head((20, 30, 5), lesion=False)
    _, placement = to_grid(volume[None], (7.5, 7.5, 5.0), GRID)
    assert placement.center == pytest.approx((14.5, 44.5), abs=1.0)
    assert set(placement.levels) <= set(range(2, 7))
    assert len(placement.levels) >= 3


def test_a_volume_without_contrast_is_refused():
    volume = np.zeros((1, 16, 16, 4), np.float32)
    volume[0, 3, 3, 3] = np.float32(1e-45)
    with pytest.raises(VolumeError):
        to_grid(volume, (1.0, 1.0, 1.0), GRID)


def test_the_reference_implementations_slices():
    """Its preprocessing, written with torch from its description: the stored array of a BraTS image
    (voxels run to the left and to the back), each slice resized to 128 and scaled by itself."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (240, 240, 6)], indexing="ij")
    inside = (x / 0.5) ** 2 + ((y - 0.1) / 0.7) ** 2 < 1 - 0.3 * z**2
    stored = inside * (1 + 0.5 * x + 0.3 * y + 0.2 * z) * 300
    stored = gaussian_filter(stored, (2, 2, 0)).astype(np.float32)
    image = nib.Nifti1Image(stored, np.diag([-1.0, -1.0, 1.0, 1.0]))
    volume = read_volume([image], ["brats"], 1)
    got, placement = to_grid(volume.data, volume.voxel_mm, reference_grid())
    assert placement.levels.tolist() == list(range(6))
    for level in range(6):
        plane = torch.from_numpy(stored[None, None, :, :, level])
        small = F.interpolate(plane, size=(128, 128), mode="bilinear")[0, 0].numpy()
        want = (small - small.min()) / (small.max() - small.min()) * 2 - 1
        assert got[level].min() == -1
        assert got[level].max() == 1
        np.testing.assert_allclose(got[level, 0], want, atol=0.06)
    turned = np.abs(got[:, :, ::-1] - got).max()
    assert turned > 0.5


def test_masks_come_back_on_the_reference_grid():
    grid = Grid(48, 2.0, scaling="slice", center="image", axes="LP")
    volume = np.zeros((90, 110, 4), bool)
    volume[30:45, 60:80, 2] = True
    placement = GridPlacement((90, 110, 4), (1.0, 1.0), (44.5, 54.5), np.arange(4))
    back = from_grid(masks_to_grid(volume, grid, placement), grid, placement) >= 0.5
    assert 2 * (back & volume).sum() / (back.sum() + volume.sum()) > 0.85
    straight = Grid(48, 2.0, scaling="slice", center="image")
    assert np.array_equal(
        masks_to_grid(volume, grid, placement),
        masks_to_grid(volume, straight, placement)[:, ::-1, ::-1],
    )


@pytest.mark.parametrize("change", [{"scaling": "x"}, {"center": "x"}, {"axes": "RAS"}])
def test_unknown_choices_are_refused(change):
    with pytest.raises(ValueError, match="a grid knows"):
        Grid(**change)
