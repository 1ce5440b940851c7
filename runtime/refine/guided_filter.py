"""The guided filter (He, Sun and Tang, "Guided Image Filtering", 2013; not in AnoFPDM).

An anomaly map is blurred: the network sees noise, and its errors spread. The slice itself shows
where a lesion ends. In every window the map is fitted by a straight line of the slice's intensity;
so what is returned has edges where the slice has them, and none elsewhere. Where neighbouring
slices count, windows reach through these as well.
"""

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
WIDEST_RADIUS_MM = 100.0
# The ridge of the fits: windows whose intensities vary less than this (variance; a slice spans
# [-1, 1]) count as flat.
_EPSILON = 1e-3


def radius_pixels(radius_mm: float, pixel_mm: float) -> int:
    """How many pixels a window of this radius in mm reaches: 0 for 0 mm, otherwise at least 1."""
    return max(1, round(radius_mm / pixel_mm)) if radius_mm > 0 else 0


def guided_filter(H: Float32, x0: Float32, weights: Float64, radius: int) -> Float32:
    """The map of the first slice, fitted to each of its modalities; the mean of these.

    With p the maps, I a modality, and means over the pixels around pixel k in all slices, by their
    weights::

        a_k = (mean(I p) - mean(I) mean(p)) / (mean(I I) - mean(I)^2 + epsilon)
        b_k = mean(p) - a_k mean(I)
        q_i = mean(a) I_i + mean(b)

    where the means of a and b are of the first slice alone (equations 5, 6 and 8 of the paper).

    Parameters
    ----------
    H : (n, H, W), the anomaly maps of the slice itself and of its neighbours
    x0 : (n, C, H, W) in [-1, 1], their modalities
    weights : (n,), what the slices count, 1 together
    radius : windows reach this many pixels to each side, at least 1; borders are mirrored

    Returns
    -------
    (H, W) float32. It is computed in float64, whose rounding is far below epsilon.
    """
    p = H.astype(np.float64)

    def mean(values: Float64) -> Float64:
        return _around(np.tensordot(weights, values, 1), radius)

    mean_p = mean(p)
    fitted = np.zeros_like(mean_p)
    for modality in x0.astype(np.float64).swapaxes(0, 1):
        mean_I = mean(modality)
        covariance = mean(modality * p) - mean_I * mean_p
        variance = mean(modality * modality) - mean_I * mean_I
        a = covariance / (variance + _EPSILON)
        b = mean_p - a * mean_I
        fitted += _around(a, radius) * modality[0] + _around(b, radius)
    return np.asarray(fitted / x0.shape[1], np.float32)


def _around(values: Float64, radius: int) -> Float64:
    """Means over 2 radius + 1 pixels a side."""
    from scipy import ndimage

    return np.asarray(ndimage.uniform_filter(values, 2 * radius + 1, mode="mirror"))
