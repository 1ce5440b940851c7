"""What is background, head and bright in one modality.

Intensities carry no unit in MRI. Each modality is scaled so that the median of its foreground
(the head) has a fixed value: a high quantile would follow the scalp's fat, which some scans show
brightly, some suppress, and brain-extracted ones lack.

Volumes are gone through in slabs: one copy of a modality is held at most, for its quantiles.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import VolumeError
from ..method.threshold import otsu_of_histogram
from .slabs import slabs

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Scale:
    """The intensities of one modality, in its own unit; float32 values."""

    low: float  # of the background
    span: float  # from there to the bright end
    cut: float  # how far above `low` the foreground begins
    top: float | None  # how far above `low` becomes the largest value; None: slice by slice

    def foreground(self, values: Float32) -> NDArray[np.bool_]:
        """Where ``values``, of any shape, belong to the head."""
        return np.asarray(_above(values, self.low, self.span) > self.cut)

    def scaled(self, values: Float32) -> Float32:
        """Background -> 0, ``top`` -> 1, nothing below or above; without ``top`` only the
        background is taken off."""
        with np.errstate(over="ignore"):
            above: Float32 = values - np.float32(self.low)
            if self.top is None:
                return np.asarray(np.maximum(above, 0))
            # Clipped at the top only now: the brightest thousandth may be lesion.
            return np.asarray(np.clip(above / np.float32(self.top), 0, 1))


def measure_scale(modality: Float32, median_multiple: float | None) -> Scale:
    """Measure a modality.

    Parameters
    ----------
    modality : (X, Y, Z) float32, any range
    median_multiple : the intensity, in multiples of the foreground's median, that becomes the
        largest value; None where each slice is scaled by itself

    Raises
    ------
    VolumeError
        If there is no contrast between head and background, or too much for float32.
    """
    darkest, brightest = modality.min(), modality.max()
    low, high = np.percentile(modality.ravel("K"), [1, 99.9])
    if not high > low:
        low, high = darkest, brightest
    with np.errstate(over="ignore"):
        low, span = np.float32(low), np.float32(high - low)
    edges = _above(np.array([darkest, brightest]), low, span)
    if not np.isfinite(edges).all():
        raise VolumeError("intensities differ by more than single precision holds: rescale them")
    if not edges[1] > np.finfo(np.float32).tiny:
        raise VolumeError("the volume shows no head against a background: is it a brain MRI?")
    cut = 0.5 * _otsu(modality, float(low), float(span), (float(edges[0]), float(edges[1])))
    scale = Scale(float(low), float(span), cut, None)
    if median_multiple is None:
        return scale
    with np.errstate(over="ignore"):
        top = np.float32(median_multiple * _median_foreground(modality, scale))
    if not np.isfinite(top):
        raise VolumeError("intensities differ by more than single precision holds: rescale them")
    return Scale(scale.low, scale.span, scale.cut, float(top))


def _above(values: Float32, low: float | np.float32, span: float | np.float32) -> Float32:
    """Intensities above the background, up to the bright end."""
    with np.errstate(over="ignore"):
        return np.asarray(np.clip(values - np.float32(low), 0, np.float32(span)))


def _otsu(modality: Float32, low: float, span: float, edges: tuple[float, float]) -> float:
    """Threshold of largest variance between two classes (Otsu 1979), over 256 bins of what lies
    above the background: from ``edges[0]`` to ``edges[1]``."""
    counts = np.zeros(256, np.int64)
    for slab in slabs(modality.shape):
        values = _above(modality[slab], low, span).astype(np.float64)
        in_slab, bounds = np.histogram(values, bins=256, range=edges)
        counts += in_slab
    return otsu_of_histogram(counts, bounds)


def _median_foreground(modality: Float32, scale: Scale) -> np.float32:
    """The median of the foreground above the background."""
    # As large as it could be, but memory is taken only where something is written.
    heads, count = np.empty(modality.size, np.float32), 0
    for slab in slabs(modality.shape):
        values = _above(modality[slab], scale.low, scale.span)
        head = values[values > scale.cut]
        heads[count : count + len(head)] = head
        count += len(head)
    return np.float32(np.median(heads[:count], overwrite_input=True))
