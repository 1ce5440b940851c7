"""The model's grid: a volume becomes scaled axial slices of one size, and masks come back.

Arrays are in canonical orientation, RAS+: the axes point to the patient's right, front and top.
:func:`measure` looks at the whole volume once; after that each slice is resampled by itself.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import VolumeError
from .intensity import Scale, measure_scale
from .slabs import slabs

Float32 = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)
_MAX_SIZE, _MAX_EXTENT_MM = 2048, 2000.0
_MAX_WEIGHTS = 2**25


@dataclass(frozen=True)
class Grid:
    """The model's slices: how a volume is scaled and resampled onto them."""

    size: int = 128  # pixels a side
    pixel_mm: float = 1.875  # their spacing
    median_multiple: float = 2.5  # intensity that becomes +1, in multiples of the head's median
    min_foreground: float = 0.02  # slices with a smaller share of head are not processed
    scaling: str = "median"  # or slice: each slice's darkest and brightest pixel become -1 and +1
    center: str = "head"  # what the grid is centred on: head or image
    axes: str = "RA"  # where rows and columns lead: RA (right, front) or LP (left, back)

    def __post_init__(self) -> None:
        for value, choices in (
            (self.scaling, ("median", "slice")),
            (self.center, ("head", "image")),
            (self.axes, ("RA", "LP")),
        ):
            if value not in choices:
                raise ValueError(f"a grid knows {' and '.join(choices)}, not {value!r}")
        if not isinstance(self.size, int) or not 8 <= self.size <= _MAX_SIZE:
            raise ValueError(f"a grid needs a size of 8 to {_MAX_SIZE}, not {self.size!r}")
        if not all(0 < scale < math.inf for scale in (self.pixel_mm, self.median_multiple)):
            raise ValueError(f"a grid needs positive scales, not {self}")
        if not self.size * self.pixel_mm <= _MAX_EXTENT_MM or not 0 <= self.min_foreground <= 1:
            raise ValueError(f"a grid has at most {_MAX_EXTENT_MM:g} mm a side, not {self}")


@dataclass(frozen=True)
class GridPlacement:
    """Where a grid lies in a volume: the way back for masks."""

    shape: tuple[int, int, int]  # (X, Y, Z) of the volume
    voxel_mm: tuple[float, float]  # (x, y) spacing
    center: tuple[float, float]  # (x, y) voxel under the middle of the grid
    levels: NDArray[np.int64]  # (n,) axial indices of the slices on the grid


@dataclass(frozen=True)
class IntensityStats:
    """What is measured on a whole volume before its slices are resampled."""

    scales: tuple[Scale, ...]  # of the modalities, in order
    center: tuple[float, float]  # (x, y) voxel under the middle of the grid


def measure(volume: Float32, grid: Grid) -> IntensityStats:
    """Find background, foreground and middle of a head.

    Parameters
    ----------
    volume : (C, X, Y, Z) float32, any range, canonical orientation

    Raises
    ------
    VolumeError
        If a modality has no contrast between head and background.
    """
    multiple = grid.median_multiple if grid.scaling == "median" else None
    scales = tuple(measure_scale(modality, multiple) for modality in volume)
    center = ((volume.shape[1] - 1) / 2, (volume.shape[2] - 1) / 2)
    if grid.center == "head":
        shadow = np.zeros(volume.shape[1:3], bool)
        for slab in slabs(volume.shape[1:]):
            shadow |= scales[0].foreground(volume[0][slab]).any(axis=2)
        pixels = np.argwhere(shadow)
        center = (_middle(pixels[:, 0]), _middle(pixels[:, 1]))
    return IntensityStats(scales, center)


def shows_head(
    plane: Float32, voxel_mm: tuple[float, float], grid: Grid, stats: IntensityStats
) -> bool:
    """Whether an axial slice, (C, X, Y) float32 with this (x, y) spacing, shows enough of the head:
    the first modality decides."""
    area = int(stats.scales[0].foreground(plane[0]).sum()) * (voxel_mm[0] * voxel_mm[1])
    return bool(area >= grid.min_foreground * (grid.size * grid.pixel_mm) ** 2)


def slice_to_grid(
    plane: Float32, voxel_mm: tuple[float, float], grid: Grid, stats: IntensityStats
) -> Float32:
    """Scale one axial slice and resample it, whatever it shows; see :func:`shows_head`.

    Parameters
    ----------
    plane : (C, X, Y) float32, any range, canonical orientation
    voxel_mm : spacing along X, Y
    stats : of the volume that it belongs to

    Returns
    -------
    (C, size, size) float32 in [-1, 1]
    """
    to_x, to_y = (
        _weights(grid.size, grid.pixel_mm, (grid.size - 1) / 2, n, voxel, center)
        for n, voxel, center in zip(plane.shape[1:], voxel_mm, stats.center, strict=True)
    )
    # The order of axes in memory decides how products are summed: fixed, so that a slice is the
    # same to the last bit wherever it comes from.
    scaled = [
        np.asfortranarray(scale.scaled(values))
        for scale, values in zip(stats.scales, plane, strict=True)
    ]
    slices = np.stack([((values @ to_y.T).T @ to_x.T).T for values in scaled])
    if grid.scaling == "slice":
        low, high = (edge(axis=(1, 2), keepdims=True) for edge in (slices.min, slices.max))
        slices = (slices - low) / np.where(high > low, high - low, 1)
    return np.ascontiguousarray(_to_axes(2 * slices - 1, grid), dtype=np.float32)


def to_grid(
    volume: Float32, voxel_mm: tuple[float, float, float], grid: Grid
) -> tuple[Float32, GridPlacement]:
    """Scale a volume and resample its axial slices: :func:`measure`, then slice by slice.

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
    stats, in_plane = measure(volume, grid), (voxel_mm[0], voxel_mm[1])
    slices, levels = [np.empty((0, len(volume), grid.size, grid.size), np.float32)], []
    for level in range(volume.shape[3]):
        plane = volume[..., level]
        if shows_head(plane, in_plane, grid, stats):
            slices.append(slice_to_grid(plane, in_plane, grid, stats)[None])
            levels.append(level)
    shape = (volume.shape[1], volume.shape[2], volume.shape[3])
    placement = GridPlacement(shape, in_plane, stats.center, np.array(levels, np.int64))
    return np.concatenate(slices), placement


def masks_to_grid(
    mask: NDArray[np.bool_], grid: Grid, placement: GridPlacement
) -> NDArray[np.bool_]:
    """A reference mask on the same slices: (X, Y, Z) -> (n, size, size)."""
    resampled = _resample(mask[..., placement.levels].astype(np.float32), grid, placement)
    return np.ascontiguousarray(_to_axes(np.moveaxis(resampled >= 0.5, 2, 0), grid))


def from_grid(
    maps: NDArray[np.generic], grid: Grid, placement: GridPlacement, out: Float32 | None = None
) -> Float32:
    """Bring per-slice maps back: (n, size, size) -> (X, Y, Z) float32, zero where there is none.

    Linear in-plane interpolation; threshold a binary mask at 0.5 afterwards. ``out``: zeros to
    write to, for instance a view of an array with other axes.
    """
    volume = np.zeros(placement.shape, np.float32) if out is None else out
    to_x, to_y = (
        _weights(n, voxel, center, grid.size, grid.pixel_mm, (grid.size - 1) / 2)
        for n, voxel, center in zip(
            placement.shape[:2], placement.voxel_mm, placement.center, strict=True
        )
    )
    for level, plane in zip(placement.levels, _to_axes(maps, grid), strict=True):
        volume[..., level] = to_x @ plane.astype(np.float32) @ to_y.T
    return volume


def _to_axes(planes: NDArray[T], grid: Grid) -> NDArray[T]:
    """Slices (..., size, size) from RAS+ to the grid's axes, or back."""
    return planes[..., ::-1, ::-1] if grid.axes == "LP" else planes


def _resample(volume: Float32, grid: Grid, placement: GridPlacement) -> Float32:
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


@lru_cache(maxsize=8)  # slices of a volume need the same two
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
    if n_out * (n_in + 2 * beyond) > _MAX_WEIGHTS:
        raise VolumeError(
            f"{n_in} pixels of {in_mm:g} mm do not become {n_out} of {out_mm:g} mm: is the voxel "
            "size right?"
        )
    source = (np.arange(-beyond, n_in + beyond) - in_center) * in_mm
    weights = np.maximum(0.0, 1.0 - np.abs(out[:, None] - source[None]) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    inside: Float32 = weights[:, beyond : beyond + n_in].astype(np.float32)
    inside.flags.writeable = False
    return inside


def _middle(coordinates: NDArray[np.int64]) -> float:
    """Middle of the central 98 % of the coordinates: steady against stray bright voxels."""
    first, last = np.percentile(coordinates, [1, 99])
    return float(first + last) / 2
