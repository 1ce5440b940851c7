"""Scans as users have them: a scan with its drawn lesions, and what changes both."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec, voxel_sizes
from nibabel.orientations import io_orientation
from nibabel.processing import resample_from_to, resample_to_output
from numpy.typing import NDArray

from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.volume.grid import Grid, to_grid
from anofpdm.runtime.volume.nifti import load_image
from anofpdm.runtime.volume.reader import read_volume, resample_onto, same_grid
from anofpdm.runtime.volume.slicing import VolumeGeometry
from anofpdm.runtime.volume.voxels import read_values
from anofpdm.train.augment import rough_brain_mask

_NOISE_SHARE, _BIAS = 0.05, 0.3


@dataclass(frozen=True)
class Scan:
    """``values``: (X, Y, Z) float32; ``affine``: (4, 4), voxels to RAS+ millimetres; ``lesion``:
    (X, Y, Z) bool, as drawn."""

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    lesion: NDArray[np.bool_]

    @property
    def image(self) -> nib.Nifti1Image:
        """The volume as an image."""
        return nib.Nifti1Image(self.values, self.affine)

    @property
    def upward(self) -> int:
        """The axis of the array that is closest to feet-to-head."""
        return int(np.flatnonzero(io_orientation(self.affine)[:, 0] == 2)[0])

    @property
    def upward_mm(self) -> float:
        """The distance of axial slices."""
        return float(voxel_sizes(self.affine)[self.upward])

    @property
    def background(self) -> float:
        """The value of air."""
        return float(np.percentile(self.values, 1))


def read_scan(path: Path, mask: Path) -> Scan:
    """A 3-D scan and its lesions, all nonzero classes, on the scan's voxels. CohortError if it has
    other than three dimensions, VolumeError if a file cannot be read."""
    image, drawn = load_image(path), load_image(mask)
    if len(image.shape) != 3 or len(drawn.shape) != 3:
        raise CohortError(f"{path} and its mask must be 3-D images: give one modality a file")
    lesion = read_values(drawn, str(mask)) != 0
    if not same_grid(image, drawn):
        drawn = nib.Nifti1Image(lesion.astype(np.uint8), drawn.affine)
        lesion = np.asarray(resample_onto(drawn, image, order=0).dataobj) != 0
    return Scan(read_values(image, str(path)), np.asarray(image.affine, np.float64), lesion)


def levels(scan: Scan, most: int) -> tuple[float, float]:
    """Every k-th axial slice, so that ``most`` are left at the most: millimetres from the volume's
    first slice to the first of these, and between them."""
    step = -(-scan.values.shape[scan.upward] // most)
    return step // 2 * scan.upward_mm, step * scan.upward_mm


def thinned(scan: Scan, levels_mm: tuple[float, float]) -> Scan:
    """These slices only; the same ones in the world after resampling."""
    axis, kept = scan.upward, [slice(None)] * 3
    start, step = (round(mm / scan.upward_mm) for mm in levels_mm)
    step = max(step, 1)
    kept[axis] = slice(start, None, step)
    scale, first = np.ones(3), np.zeros(3)
    scale[axis], first[axis] = step, start
    affine = scan.affine @ from_matvec(np.diag(scale), first)
    return Scan(scan.values[tuple(kept)], affine, scan.lesion[tuple(kept)])


def without_skull(scan: Scan) -> Scan:
    """Air instead of everything outside a rough brain mask, made in the scan's pixels."""
    volume = read_volume([scan.image], ["the scan"], 1)
    _, x, y, _ = volume.data.shape
    grid = Grid(max(x, y), volume.voxel_mm[0], min_foreground=0, center="image")
    slices, placement = to_grid(volume.data, volume.voxel_mm, grid)
    masks = np.stack([rough_brain_mask(plane[0], grid.pixel_mm) for plane in slices])
    brain = VolumeGeometry(volume, grid, placement).to_source(masks) >= 0.5
    return _changed(scan, np.where(brain, scan.values, scan.background))


def resampled(scan: Scan, voxel_mm: tuple[float, float, float]) -> Scan:
    """Other voxels, along RAS+: values linearly, lesions to the nearest."""
    image = resample_to_output(scan.image, voxel_mm, order=1, cval=scan.background)
    drawn = nib.Nifti1Image(scan.lesion.astype(np.uint8), scan.affine)
    lesion = np.asarray(resample_from_to(drawn, (image.shape, image.affine), order=0).dataobj) != 0
    return Scan(np.asarray(image.dataobj, np.float32), image.affine, lesion)


def field_of_view(scan: Scan, mm: float) -> Scan:
    """Axial slices of ``mm`` by ``mm`` about the same centre: cut off, or padded with air."""
    values, lesion, first = scan.values, scan.lesion, np.zeros(3)
    for axis in {0, 1, 2} - {scan.upward}:
        n, kept, padding = values.shape[axis], [slice(None)] * 3, [(0, 0)] * 3
        wanted = max(round(mm / float(voxel_sizes(scan.affine)[axis])), 1)
        first[axis] = start = (n - wanted) // 2
        kept[axis] = slice(max(start, 0), max(start, 0) + min(n, wanted))
        padding[axis] = (max(-start, 0), max(wanted - n + start, 0))
        values = np.pad(values[tuple(kept)], padding, constant_values=scan.background)
        lesion = np.pad(lesion[tuple(kept)], padding)
    return Scan(values, scan.affine @ from_matvec(np.eye(3), first), lesion)


def noisy(scan: Scan) -> Scan:
    """Rician noise: of 5 % of the head's median in either part of the complex signal."""
    rng = np.random.Generator(np.random.Philox(0))
    signal = scan.values - scan.background
    head = signal > 0.1 * np.percentile(signal, 99)
    sigma = _NOISE_SHARE * np.median(signal[head])
    real, imaginary = sigma * rng.standard_normal((2, *signal.shape))
    return _changed(scan, np.hypot(signal + real, imaginary) + scan.background)


def biased(scan: Scan) -> Scan:
    """A smooth field of up to 30 % more and less across the head."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in scan.values.shape), indexing="ij")
    field = 1 + _BIAS * np.sin(np.pi * (0.8 * x + 0.4 * y + 0.3 * z))
    return _changed(scan, (scan.values - scan.background) * field + scan.background)


def inverted(scan: Scan) -> Scan:
    """Dark for bright, air included."""
    return _changed(scan, np.clip(np.percentile(scan.values, 99.9) - scan.values, 0, None))


def turned(scan: Scan, degrees: float, about: int) -> Scan:
    """The same voxels, their affine turned about a world axis (0 to the right, 2 upwards) through
    the volume's centre."""
    center = scan.affine @ [*((np.array(scan.values.shape) - 1) / 2), 1]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = (axis for axis in range(3) if axis != about)
    matrix = np.eye(3)
    matrix[np.ix_([first, second], [first, second])] = [[cosine, -sine], [sine, cosine]]
    turn = from_matvec(matrix, center[:3] - matrix @ center[:3])
    return replace(scan, affine=turn @ scan.affine)


def noise_alone(scan: Scan) -> Scan:
    """Rayleigh noise in place of a head, and no lesion."""
    values = np.random.Generator(np.random.Philox(1)).rayleigh(100, scan.values.shape)
    return _changed(replace(scan, lesion=np.zeros_like(scan.lesion)), values)


def _changed(scan: Scan, values: NDArray[np.floating]) -> Scan:
    return replace(scan, values=values.astype(np.float32))


Change = Callable[[Scan], Scan]
CONDITIONS: dict[str, Change] = {
    "as it is": lambda scan: scan,
    "skull removed (roughly)": without_skull,
    "resampled to 1 x 1 x 1 mm": lambda scan: resampled(scan, (1, 1, 1)),
    "resampled to 1 x 1 x 5 mm": lambda scan: resampled(scan, (1, 1, 5)),
    "field of view 180 mm": lambda scan: field_of_view(scan, 180),
    "field of view 220 mm": lambda scan: field_of_view(scan, 220),
    "field of view 260 mm": lambda scan: field_of_view(scan, 260),
    "noise, 5 % of the head's median": noisy,
    "bias field, 30 % up and down": biased,
    "turned by 10 degrees in the affine": lambda scan: turned(scan, 10, about=2),
}
# What no lesion model can be expected to understand; it should say so.
CONTROLS: dict[str, Change] = {
    "control: upside down in the affine": lambda scan: turned(scan, 180, about=0),
    "control: intensities inverted": inverted,
    "control: noise alone": noise_alone,
}
