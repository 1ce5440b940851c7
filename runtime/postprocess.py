"""From the anomaly map to a mask (reference implementation; the paper's appendix E), and the guided
filter before the cut where the calibration has it.

SciPy is imported where it is used: half of the time that importing the runtime would take is its.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .guided import Guide, guided_filter

_TOUCHING = np.ones((3, 3), bool)
_MEDIAN_SIZE = 5
# "At most 40 pixels" was stated for slices of 128 x 128.
_SMALL, _SMALL_AT = 40, 128 * 128


def smooth(H: NDArray[np.float32], guide: Guide | None = None) -> NDArray[np.float32]:
    """The anomaly map as it is cut: after a 5x5 median with mirrored borders and, with a ``guide``,
    fitted to the edges of the slice.

    Parameters
    ----------
    H : (H, W) float32, the mean of the modalities' anomaly maps
    """
    padded = np.pad(H, _MEDIAN_SIZE // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_MEDIAN_SIZE, _MEDIAN_SIZE))
    middle = _MEDIAN_SIZE**2 // 2
    median = np.partition(windows.reshape(*H.shape, -1), middle, axis=-1)[..., middle]
    return guided_filter(median, guide) if guide else median


def cut(H: NDArray[np.float32], Q: float, guide: Guide | None = None) -> NDArray[np.bool_]:
    """Smooth the anomaly map, cut it at ``Q`` and drop small components.

    Parameters
    ----------
    H : (H, W) float32, the mean of the modalities' anomaly maps
    guide : see :func:`smooth`

    Returns
    -------
    (H, W) bool
    """
    smoothed = smooth(H, guide)
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
