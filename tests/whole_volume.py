"""Scaling and resampling as they are defined: the whole volume at once, copy after copy.

The runtime goes through slabs and slices instead. Its statistics and decisions have to be the same
to the last bit; in which order a matrix library adds up the products of a resampled pixel depends
on the processor and the number of slices, so that these differ by rounding, within a bound.
"""

import numpy as np

from anofpdm.runtime.volume.grid import GridPlacement

U = 2.0**-24  # unit roundoff of float32


def to_grid(volume, voxel_mm, grid):
    """(C, X, Y, Z) -> slices, placement, and by how much the slices of two float32 evaluations may
    differ, pixel by pixel; see :func:`anofpdm.runtime.volume.grid.to_grid`."""
    scaled = np.empty_like(volume)
    for c, modality in enumerate(volume):
        scaled[c], head = _scale(modality, grid)
        if c == 0:
            foreground = head
    shape = volume.shape[1:]
    center = ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
    if grid.center == "head":
        pixels = np.argwhere(foreground.any(axis=2))
        center = tuple(float(np.percentile(p, [1, 99]).sum()) / 2 for p in pixels.T)
    area = foreground.sum(axis=(0, 1)) * (voxel_mm[0] * voxel_mm[1])
    levels = np.flatnonzero(area >= grid.min_foreground * (grid.size * grid.pixel_mm) ** 2)
    placement = GridPlacement(shape, tuple(voxel_mm[:2]), center, levels)
    to_x, to_y = (
        _weights(grid.size, grid.pixel_mm, (grid.size - 1) / 2, n, voxel, middle)
        for n, voxel, middle in zip(shape[:2], voxel_mm[:2], center, strict=True)
    )
    along_y = np.einsum("jy,...xyn->...xjn", to_y, scaled[..., levels], optimize=True)
    slices = np.moveaxis(np.einsum("ix,...xjn->...ijn", to_x, along_y, optimize=True), 3, 0)
    bound = _summation_bound(slices, to_x, to_y)
    if grid.scaling == "slice":
        low, high = (edge(axis=(2, 3), keepdims=True) for edge in (slices.min, slices.max))
        slices = (slices - low) / np.where(high > low, high - low, 1)
        bound = _scaling_bound(bound, low, high)
    slices = 2 * slices - 1
    # The doubling is exact; the difference, of at most 1, is rounded in both evaluations.
    bound = 2 * bound + 2 * U
    if grid.axes == "LP":
        slices, bound = slices[..., ::-1, ::-1], bound[..., ::-1, ::-1]
    return np.ascontiguousarray(slices, dtype=np.float32), placement, bound


def _gamma(n):
    """Of Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1."""
    return n * U / (1 - n * U)


def _summation_bound(slices, to_x, to_y):
    """How far two evaluations of sum_x w_x (sum_y w_y v_xy) lie apart, in whatever order the
    products are added, fused with their addition or not.

    One inner product of n terms other than 0 errs by at most gamma_n times the sum of the terms'
    absolute values (Higham, section 3.1, eq. 3.5), two in a row by gamma_(n_x + n_y) (lemma 3.3).
    Weights and values are not negative: that sum is the result itself, here at most the slice's
    largest, which has been computed with such an error.
    """
    n = np.count_nonzero(to_x, axis=1)[:, None] + np.count_nonzero(to_y, axis=1)
    largest = slices.max(axis=(2, 3), keepdims=True) / (1 - _gamma(n.max()))
    return 2 * _gamma(n) * largest


def _scaling_bound(bound, low, high):
    """The same after (r - low) / (high - low): both differences move by at most twice the largest
    bound, their quotient is at most 1, and three operations round, in both evaluations."""
    most = bound.max(axis=(2, 3), keepdims=True)
    narrowest = high.astype(np.float64) - low - 2 * most
    assert (narrowest > 0).all()
    return np.broadcast_to(4 * most / narrowest + 2 * _gamma(3), bound.shape)


def _scale(modality, grid):
    low, high = np.percentile(modality, [1, 99.9])
    if not high > low:
        low, high = modality.min(), modality.max()
    values = np.clip(modality - np.float32(low), 0, np.float32(high - low))
    foreground = values > 0.5 * _otsu(values)
    if grid.scaling == "slice":
        return np.maximum(modality - np.float32(low), 0), foreground
    top = grid.median_multiple * np.median(values[foreground])
    return np.clip((modality - np.float32(low)) / np.float32(top), 0, 1), foreground


def _otsu(values):
    counts, edges = np.histogram(values.astype(np.float64), bins=256)
    centers = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    sums = np.cumsum(counts * centers)
    separation = sums[-1] / counts.sum() * below - sums[:-1]
    occupied = (below > 0) & (above > 0)
    between = np.where(occupied, separation**2 / np.where(occupied, below * above, 1), 0.0)
    return float(centers[np.argmax(between)])


def _weights(n_out, out_mm, out_center, n_in, in_mm, in_center):
    width = max(out_mm, in_mm)
    out = (np.arange(n_out) - out_center) * out_mm
    beyond = int(np.ceil((np.abs(out).max() + width) / in_mm))
    source = (np.arange(-beyond, n_in + beyond) - in_center) * in_mm
    weights = np.maximum(0.0, 1.0 - np.abs(out[:, None] - source[None]) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights[:, beyond : beyond + n_in].astype(np.float32)
