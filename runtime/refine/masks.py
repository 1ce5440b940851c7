"""From the map that is cut to a mask (reference implementation; the paper's appendix E).

SciPy is imported where it is used: half of the time that importing the runtime would take is its.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

_TOUCHING = np.ones((3, 3), bool)
_MEDIAN_SIZE = 5
# "At most 40 pixels" was stated for slices of 128 x 128.
_SMALL, _SMALL_AT = 40, 128 * 128


def median(H: NDArray[np.float32]) -> NDArray[np.float32]:
    """An anomaly map (H, W) after a 5x5 median with mirrored borders."""
    windows = sliding_window_view(np.pad(H, _MEDIAN_SIZE // 2, "reflect"), 2 * (_MEDIAN_SIZE,))
    middle = _MEDIAN_SIZE**2 // 2
    return np.partition(windows.reshape(*H.shape, -1), middle, axis=-1)[..., middle]


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
