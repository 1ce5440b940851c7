"""From the anomaly map to a mask (reference implementation; the paper's appendix E).

SciPy is imported where it is used: half of the time that importing the runtime would take is its.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_TOUCHING = np.ones((3, 3), bool)
_MEDIAN_SIZE = 5
# "At most 40 pixels" was stated for slices of 128 x 128.
_SMALL, _SMALL_AT = 40, 128 * 128


def smooth(H: NDArray[np.float32]) -> NDArray[np.float32]:
    """The anomaly map (H, W) after a 5x5 median with mirrored borders."""
    return median_filter(H, _MEDIAN_SIZE)


def cut(smoothed: NDArray[np.float32], Q: float) -> NDArray[np.bool_]:
    """The smoothed map (H, W) cut at ``Q``, without small components: (H, W) bool."""
    # Where more of the map is exactly zero than the quantile asks for, Q is zero too.
    return drop_small((smoothed >= Q) & (smoothed > 0))


def drop_small(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drop components (8-connected) whose area, holes filled, is at most 40 pixels at 128x128."""
    from scipy import ndimage

    smallest = _SMALL * mask.size / _SMALL_AT
    pieces, count = ndimage.label(mask, structure=_TOUCHING)
    kept = np.zeros(mask.shape, bool)
    for number, window in enumerate(ndimage.find_objects(pieces, count), start=1):
        piece = pieces[window] == number
        if ndimage.binary_fill_holes(piece).sum() > smallest:
            kept[window] |= piece
    return kept


Float32 = NDArray[np.float32]


def median_filter(H: Float32, size: int) -> Float32:
    """Of windows of ``size`` x ``size`` pixels, an odd number: (H, W) -> (H, W); mirrored borders.

    ``H`` holds no NaN.
    """
    padded = np.pad(H, size // 2, mode="reflect")
    shifts = [(i, j) for i in range(size) for j in range(size)]
    wires = [padded[i : i + H.shape[0], j : j + H.shape[1]] for i, j in shifts]
    for a, b, keeps_low, keeps_high in _selection(size**2, size**2 // 2):
        one, other = wires[a], wires[b]
        if keeps_low:
            wires[a] = np.minimum(one, other)
        if keeps_high:
            wires[b] = np.maximum(one, other)
    return wires[size**2 // 2]


@functools.cache
def _selection(n: int, wanted: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """What of Batcher's network for ``n`` wires the ``wanted`` one depends on: (wire of the lower
    value, of the higher, whether each is needed)."""
    needed, kept = {wanted}, []
    for a, b in reversed(list(_odd_even_mergesort(n))):
        if a in needed or b in needed:
            kept.append((a, b, a in needed, b in needed))
            needed |= {a, b}
    return tuple(reversed(kept))


def _odd_even_mergesort(n: int) -> Iterator[tuple[int, int]]:
    """Comparators that sort ``n`` values, lower wire first (Batcher 1968): those of the next power
    of two, where wires from ``n`` on would hold infinity and never change."""
    block = 1
    while block < n:
        apart = block
        while apart:
            for start in range(apart % block, n - apart, 2 * apart):
                for a in range(start, min(start + apart, n - apart)):
                    if a // (2 * block) == (a + apart) // (2 * block):
                        yield a, a + apart
            apart //= 2
        block *= 2
