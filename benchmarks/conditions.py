"""What scans look like that users feed: one scan, its drawn lesions, and what is done to both."""

from __future__ import annotations

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
from anofpdm.runtime.volume.grid import Grid, from_grid, to_grid
from anofpdm.runtime.volume.nifti import load_image
from anofpdm.runtime.volume.reader import read_values, read_volume, resample_onto, same_grid
from anofpdm.train.augment import rough_brain_mask

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
_NOISE_SHARE, _BIAS = 0.05, 0.3


@dataclass(frozen=True)
class Scan:
    """``values``: (X, Y, Z) float32; ``affine``: (4, 4), voxels to RAS+ millimetres; ``lesion``:
    (X, Y, Z) bool, what was drawn."""

    values: Float32
    affine: Float64
    lesion: NDArray[np.bool_]

    @property
    def image(self) -> nib.Nifti1Image:
        """What is segmented."""
        return nib.Nifti1Image(self.values, self.affine)

    @property
    def upward(self) -> int:
        """The axis of the array that is closest to feet-to-head."""
        return int(np.flatnonzero(io_orientation(self.affine)[:, 0] == 2)[0])

    @property
    def background(self) -> float:
        """The value of air."""
        return float(np.percentile(self.values, 1))


def read_scan(path: Path, mask: Path) -> Scan:
    """A 3-D scan and its lesions, all nonzero classes, on the scan's voxels.

    Raises
    ------
    CohortError
        If the scan has other than three dimensions.
    VolumeError
        If a file cannot be read.
    """
    image, drawn = load_image(path), load_image(mask)
    if len(image.shape) != 3 or len(drawn.shape) != 3:
        raise CohortError(f"{path} and its mask must be 3-D images: give one modality a file")
    lesion = read_values(drawn, str(mask)) != 0
    if not same_grid(image, drawn):
        plain = nib.Nifti1Image(lesion.astype(np.uint8), drawn.affine)
        lesion = np.asarray(resample_onto(plain, image, order=0).dataobj) != 0
    return Scan(read_values(image, str(path)), np.asarray(image.affine, np.float64), lesion)


@dataclass(frozen=True)
class Levels:
    """Which axial slices are used: ``first_mm`` from the volume's first, then each ``step_mm``."""

    first_mm: float
    step_mm: float


def levels(scan: Scan, most: int) -> Levels:
    """Every k-th slice, so that ``most`` are left at the most."""
    axis = scan.upward
    step = -(-scan.values.shape[axis] // most)
    spacing_mm = float(voxel_sizes(scan.affine)[axis])
    return Levels(step // 2 * spacing_mm, step * spacing_mm)


def thinned(scan: Scan, used: Levels) -> Scan:
    """These slices only; the same ones in the world after resampling."""
    axis = scan.upward
    spacing_mm = float(voxel_sizes(scan.affine)[axis])
    start, step = round(used.first_mm / spacing_mm), max(round(used.step_mm / spacing_mm), 1)
    kept = [slice(None)] * 3
    kept[axis] = slice(start, None, step)
    scale, first = np.ones(3), np.zeros(3)
    scale[axis], first[axis] = step, start
    affine = scan.affine @ from_matvec(np.diag(scale), first)
    return Scan(scan.values[tuple(kept)], affine, scan.lesion[tuple(kept)])


def without_skull(scan: Scan) -> Scan:
    """Air instead of everything outside a rough brain mask, made in the scan's own pixels."""
    volume = read_volume([scan.image], ["the scan"], 1)
    _, x, y, _ = volume.data.shape
    own = Grid(max(x, y), volume.voxel_mm[0], min_foreground=0, center="image")
    slices, placement = to_grid(volume.data, volume.voxel_mm, own)
    masks = np.stack([rough_brain_mask(plane[0], own.pixel_mm) for plane in slices])
    brain = volume.to_source(from_grid(masks, own, placement) >= 0.5)
    values = np.where(brain, scan.values, np.float32(scan.background))
    return replace(scan, values=values.astype(np.float32))


def resampled(scan: Scan, voxel_mm: tuple[float, float, float]) -> Scan:
    """Other voxels, along RAS+: values linearly, lesions to the nearest."""
    image = resample_to_output(scan.image, voxel_mm, order=1, cval=scan.background)
    drawn = nib.Nifti1Image(scan.lesion.astype(np.uint8), scan.affine)
    lesion = resample_from_to(drawn, (image.shape, image.affine), order=0)
    return Scan(
        np.asarray(image.dataobj, np.float32), image.affine, np.asarray(lesion.dataobj) != 0
    )


def field_of_view(scan: Scan, mm: float) -> Scan:
    """Axial slices of ``mm`` by ``mm`` about the same centre: cut off, or padded with air."""
    values, lesion, first = scan.values, scan.lesion, np.zeros(3)
    for axis in {0, 1, 2} - {scan.upward}:
        n = values.shape[axis]
        wanted = max(round(mm / float(voxel_sizes(scan.affine)[axis])), 1)
        first[axis] = start = (n - wanted) // 2
        kept = [slice(None)] * 3
        kept[axis] = slice(max(start, 0), max(start, 0) + min(n, wanted))
        around = [(0, 0)] * 3
        around[axis] = (max(-start, 0), max(wanted - n + start, 0))
        values = np.pad(values[tuple(kept)], around, constant_values=scan.background)
        lesion = np.pad(lesion[tuple(kept)], around)
    return Scan(values, scan.affine @ from_matvec(np.eye(3), first), lesion)


def noisy(scan: Scan) -> Scan:
    """Rician noise: of 5 % of the head's median in either part of the complex signal."""
    rng = np.random.Generator(np.random.Philox(0))
    signal = scan.values - scan.background
    head = signal > 0.1 * np.percentile(signal, 99)
    sigma = _NOISE_SHARE * np.median(signal[head])
    real, imaginary = sigma * rng.standard_normal((2, *signal.shape))
    return _shown(scan, np.hypot(signal + real, imaginary))


def biased(scan: Scan) -> Scan:
    """A smooth field of up to 30 % more and less across the head."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in scan.values.shape), indexing="ij")
    field = 1 + _BIAS * np.sin(np.pi * (0.8 * x + 0.4 * y + 0.3 * z))
    return _shown(scan, (scan.values - scan.background) * field)


def inverted(scan: Scan) -> Scan:
    """Dark for bright, air included."""
    high = np.percentile(scan.values, 99.9)
    return replace(scan, values=np.clip(high - scan.values, 0, None).astype(np.float32))


def turned(scan: Scan, degrees: float, about: int) -> Scan:
    """The same voxels, their affine turned about a world axis (0 to the right, 2 upwards) through
    the volume's centre."""
    center = scan.affine @ [*((np.array(scan.values.shape) - 1) / 2), 1]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    one, other = (axis for axis in range(3) if axis != about)
    matrix = np.eye(3)
    matrix[[one, one, other, other], [one, other, one, other]] = cosine, -sine, sine, cosine
    turn = from_matvec(matrix, center[:3] - matrix @ center[:3])
    return replace(scan, affine=turn @ scan.affine)


def noise_alone(scan: Scan) -> Scan:
    """Rayleigh noise in place of a head, and no lesion."""
    rng = np.random.Generator(np.random.Philox(1))
    values = rng.rayleigh(100, scan.values.shape).astype(np.float32)
    return replace(scan, values=values, lesion=np.zeros_like(scan.lesion))


def _shown(scan: Scan, signal: Float64) -> Scan:
    return replace(scan, values=(signal + scan.background).astype(np.float32))


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
