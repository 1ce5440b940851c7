"""A median filter by a selection network: shifted copies of a whole map are compared, and no window
is sorted. The same values as any other median.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

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
