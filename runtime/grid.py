"""The model's grid: a volume becomes scaled axial slices of one size, and masks come back.

Everything here works on arrays in canonical orientation, RAS+: the axes point to the patient's
right, front and top. :mod:`anofpdm.runtime.volume` provides it.

Intensities carry no unit in MRI. Each modality is scaled so that the median of its foreground
(the head) has a fixed value: a high quantile would follow the scalp's fat, which some scans show
brightly, some suppress, and brain-extracted ones lack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import VolumeError

Float32 = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Grid:
    """How a volume is brought onto the network's slices.

    ``size``: pixels a side; ``pixel_mm``: their spacing; ``median_multiple``: the intensity, in
    multiples of the foreground's median, that becomes +1 (the background becomes -1);
    ``min_foreground``: slices with a smaller share of foreground are not processed.

    ``scaling``: ``median`` as above, or ``slice``: each slice's own darkest and brightest pixel
    become -1 and +1; ``center``: what the grid is centred on, the ``head`` or the ``image``;
    ``axes``: where rows and columns lead, ``RA`` (to the patient's right and front) or ``LP``.
    """

    size: int = 128
    pixel_mm: float = 1.875
    median_multiple: float = 2.5
    min_foreground: float = 0.02
    scaling: str = "median"
    center: str = "head"
    axes: str = "RA"

    def __post_init__(self) -> None:
        for value, known in (
            (self.scaling, ("median", "slice")),
            (self.center, ("head", "image")),
            (self.axes, ("RA", "LP")),
        ):
            if value not in known:
                raise ValueError(f"a grid knows {' and '.join(known)}, not {value!r}")
        if self.size < 8 or not self.pixel_mm > 0 or not self.median_multiple > 0:
            raise ValueError(f"a grid needs size >= 8 and positive scales, not {self}")


def reference_grid(size: int = 128) -> Grid:
    """The slices that the reference implementation trains on: BraTS images of 240 x 240 pixels of
    1 mm as they are stored (LP), brought to ``size`` pixels a side, each scaled by itself."""
    return Grid(size, 240 / size, scaling="slice", center="image", axes="LP")


@dataclass(frozen=True)
class Placement:
    """Where a grid lies in a volume: the way back for masks.

    ``shape``: (X, Y, Z) of the volume; ``voxel_mm``: (x, y) spacing; ``center``: (x, y) voxel under
    the middle of the grid; ``levels``: (n,) the axial indices of the slices on the grid.
    """

    shape: tuple[int, int, int]
    voxel_mm: tuple[float, float]
    center: tuple[float, float]
    levels: NDArray[np.int64]


def to_grid(
    volume: Float32, voxel_mm: tuple[float, float, float], grid: Grid
) -> tuple[Float32, Placement]:
    """Scale a volume and resample its axial slices.

    Parameters
    ----------
    volume : (C, X, Y, Z) float32, any range, canonical orientation
    voxel_mm : spacing along X, Y, Z

    Returns
    -------
    slices : (n, C, size, size) float32 in [-1, 1], for the n levels that show enough of the head
    placement : where they lie

    Raises
    ------
    VolumeError
        If a modality has no contrast between head and background.
    """
    scaled = np.empty_like(volume)
    for c, modality in enumerate(volume):
        scaled[c], head = _scale(modality, grid)
        if c == 0:
            foreground = head
    shape = (volume.shape[1], volume.shape[2], volume.shape[3])
    center = ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
    if grid.center == "head":
        pixels = np.argwhere(foreground.any(axis=2))
        center = (_middle(pixels[:, 0]), _middle(pixels[:, 1]))
    area = foreground.sum(axis=(0, 1)) * (voxel_mm[0] * voxel_mm[1])
    placement = Placement(
        shape=shape,
        voxel_mm=(voxel_mm[0], voxel_mm[1]),
        center=center,
        levels=np.flatnonzero(area >= grid.min_foreground * (grid.size * grid.pixel_mm) ** 2),
    )
    slices = np.moveaxis(_resample(scaled[..., placement.levels], grid, placement), 3, 0)
    if grid.scaling == "slice":
        low, high = (edge(axis=(2, 3), keepdims=True) for edge in (slices.min, slices.max))
        slices = (slices - low) / np.where(high > low, high - low, 1)
    return np.ascontiguousarray(_turned(2 * slices - 1, grid), dtype=np.float32), placement


def masks_to_grid(mask: NDArray[np.bool_], grid: Grid, placement: Placement) -> NDArray[np.bool_]:
    """A reference mask on the same slices: (X, Y, Z) -> (n, size, size)."""
    resampled = _resample(mask[..., placement.levels].astype(np.float32), grid, placement)
    return np.ascontiguousarray(_turned(np.moveaxis(resampled >= 0.5, 2, 0), grid))


def from_grid(maps: NDArray[np.generic], grid: Grid, placement: Placement) -> Float32:
    """Bring per-slice maps back: (n, size, size) -> (X, Y, Z) float32, zero where there is none.

    Linear in-plane interpolation; threshold a binary mask at 0.5 afterwards.
    """
    volume = np.zeros(placement.shape, np.float32)
    to_x, to_y = (
        _weights(n, voxel, center, grid.size, grid.pixel_mm, (grid.size - 1) / 2)
        for n, voxel, center in zip(
            placement.shape[:2], placement.voxel_mm, placement.center, strict=True
        )
    )
    for level, plane in zip(placement.levels, _turned(maps, grid), strict=True):
        volume[..., level] = to_x @ plane.astype(np.float32) @ to_y.T
    return volume


def _turned(planes: NDArray[T], grid: Grid) -> NDArray[T]:
    """Slices (..., size, size) from RAS+ to the grid's axes, or back."""
    return planes[..., ::-1, ::-1] if grid.axes == "LP" else planes


def _resample(volume: Float32, grid: Grid, placement: Placement) -> Float32:
    """In-plane resampling of (..., X, Y, n) to (..., size, size, n); outside is zero."""
    to_x, to_y = (
        _weights(grid.size, grid.pixel_mm, (grid.size - 1) / 2, n, voxel, center)
        for n, voxel, center in zip(
            placement.shape[:2], placement.voxel_mm, placement.center, strict=True
        )
    )
    along_y = np.einsum("jy,...xyn->...xjn", to_y, volume, optimize=True)
    resampled: Float32 = np.einsum("ix,...xjn->...ijn", to_x, along_y, optimize=True)
    return resampled


def _weights(
    n_out: int, out_mm: float, out_center: float, n_in: int, in_mm: float, in_center: float
) -> Float32:
    """(n_out, n_in) resampling matrix: a triangle as wide as the coarser of the two spacings.

    Interpolates linearly towards finer grids and averages towards coarser ones. Rows are
    normalised as if the input went on with zeros, so what lies outside counts as background.
    """
    width = max(out_mm, in_mm)
    out = (np.arange(n_out) - out_center) * out_mm
    beyond = int(np.ceil((np.abs(out).max() + width) / in_mm))
    source = (np.arange(-beyond, n_in + beyond) - in_center) * in_mm
    weights = np.maximum(0.0, 1.0 - np.abs(out[:, None] - source[None]) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    inside: Float32 = weights[:, beyond : beyond + n_in].astype(np.float32)
    return inside


def _scale(modality: Float32, grid: Grid) -> tuple[Float32, NDArray[np.bool_]]:
    """Background -> 0, and ``median_multiple`` times the foreground's median -> 1 unless slices are
    scaled by themselves; the foreground."""
    low, high = np.percentile(modality, [1, 99.9])
    if not high > low:
        low, high = modality.min(), modality.max()
    values = np.clip(modality - np.float32(low), 0, np.float32(high - low))
    if not values.max() > np.finfo(np.float32).tiny:
        raise VolumeError("the volume shows no head against a background: is it a brain MRI?")
    foreground = values > 0.5 * _otsu(values)
    if grid.scaling == "slice":
        return np.maximum(modality - np.float32(low), 0), foreground
    top = grid.median_multiple * np.median(values[foreground])
    # Clipped at the top only now: the brightest thousandth may be lesion.
    return np.clip((modality - np.float32(low)) / np.float32(top), 0, 1), foreground


def _otsu(values: Float32) -> float:
    """Threshold of largest variance between two classes (Otsu 1979), over 256 bins."""
    counts, edges = np.histogram(values.astype(np.float64), bins=256)
    centers = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    sums = np.cumsum(counts * centers)
    separation = sums[-1] / counts.sum() * below - sums[:-1]
    occupied = (below > 0) & (above > 0)
    between = np.where(occupied, separation**2 / np.where(occupied, below * above, 1), 0.0)
    return float(centers[np.argmax(between)])


def _middle(coordinates: NDArray[np.int64]) -> float:
    """Middle of the central 98 % of the coordinates: steady against stray bright voxels."""
    first, last = np.percentile(coordinates, [1, 99])
    return float(first + last) / 2
