"""The guided filter (He, Sun and Tang, "Guided Image Filtering", 2013; not in AnoFPDM).

An anomaly map is blurred: the network sees noise, and its errors spread. The slice itself shows
where a lesion ends. In every window the map is fitted by a straight line of the slice's intensity;
so what is returned has edges where the slice has them, and none elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDEST_RADIUS_MM = 100.0
# The ridge of the fits: windows whose intensities vary less than this (variance; a slice spans
# [-1, 1]) count as flat.
_EPSILON = 1e-3


class Guide(NamedTuple):
    """What a map is fitted to.

    ``x0``: (C, H, W) float32 in [-1, 1], the scored modalities of the slice; ``radius``: windows
    reach this many pixels to each side, at least 1.
    """

    x0: NDArray[np.float32]
    radius: int


def radius(radius_mm: float, pixel_mm: float) -> int:
    """How many pixels a window of this radius in mm reaches: 0 for 0 mm, otherwise at least 1."""
    return max(1, round(radius_mm / pixel_mm)) if radius_mm > 0 else 0


def guided_filter(H: NDArray[np.float32], guide: Guide) -> NDArray[np.float32]:
    """The map (H, W), fitted to each modality of the guide; the mean of these, float32.

    With p the map, I the modality, and means over the window around pixel k (mirrored borders)::

        a_k = (mean(I p) - mean(I) mean(p)) / (mean(I I) - mean(I)^2 + epsilon)
        b_k = mean(p) - a_k mean(I)
        q_i = mean(a) I_i + mean(b)

    Window means of float64, whose rounding is far below epsilon.
    """
    p = H.astype(np.float64)
    mean_p = _mean(p, guide.radius)
    fitted = np.zeros_like(p)
    for modality in guide.x0.astype(np.float64):
        mean_I = _mean(modality, guide.radius)
        covariance = _mean(modality * p, guide.radius) - mean_I * mean_p
        variance = _mean(modality * modality, guide.radius) - mean_I * mean_I
        a = covariance / (variance + _EPSILON)
        b = mean_p - a * mean_I
        fitted += _mean(a, guide.radius) * modality + _mean(b, guide.radius)
    return np.asarray(fitted / len(guide.x0), np.float32)


def _mean(values: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Over windows of 2 radius + 1 pixels a side."""
    from scipy import ndimage

    return np.asarray(ndimage.uniform_filter(values, 2 * radius + 1, mode="mirror"))
