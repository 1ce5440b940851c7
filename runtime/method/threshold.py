"""Where an anomaly map is cut: Algorithm 1, and Otsu's threshold."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# Where a map is cut: by Algorithm 1, or at the mean of its threshold and Otsu's.
THRESHOLDS = ("algorithm-1", "mean-with-otsu")
_BINS, _TINY = 256, 1e-9


@dataclass(frozen=True)
class Threshold:
    """Where maps of C modalities are cut by Algorithm 1."""

    index: NDArray[np.int64]  # (C,) 0..100, place in the grid of quantiles
    per_modality: Float64  # (C,) where each modality's map would be cut

    @property
    def Q(self) -> float:
        """Where the mean of the modalities' maps is cut."""
        return float(self.per_modality.mean())


def threshold(H: Float32, M_best: Float64, M_max: Float64, a: float, b: float) -> Threshold:
    """Where to cut the anomaly map (Algorithm 1).

    Parameters
    ----------
    H : (C, H, W) float32, unfiltered
    M_best, M_max : (C,), the slice's largest M and the calibrated one
    a, b : the smallest and largest quantile, 0 <= a <= b <= 1
    """
    grid = np.linspace(b, a, 101)
    share = np.clip(M_best / M_max, 0.0, 1.0)
    index = np.rint(np.round(share, 2) * 100).astype(np.int64)
    cuts = np.array([np.quantile(h, grid[i]) for h, i in zip(H, index, strict=True)], np.float64)
    return Threshold(index, cuts)


def otsu(H: Float32) -> float:
    """The threshold that splits the values of a map into the two classes of largest variance
    between them (Otsu 1979), among the middles of 256 equal steps from the least to the largest.

    Not in the paper, whose quantiles go by the slice's largest M alone: this one goes by the map.
    Of a map that is the same everywhere, its value.
    """
    values = np.asarray(H, np.float64)  # in float32 256 steps may not fit between two values
    low, high = float(values.min()), float(values.max())
    if high - low <= _TINY * max(abs(low), abs(high)):
        return low
    return otsu_of_histogram(*np.histogram(values, bins=_BINS))


def otsu_of_histogram(counts: NDArray[np.int64], edges: Float64) -> float:
    """Otsu's threshold (1979): the middle of the bin that splits a histogram into the two classes
    of largest variance between them.

    Parameters
    ----------
    counts : (n,), values in each bin
    edges : (n + 1,), where the bins begin and end
    """
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    sums = np.cumsum(counts * middles)
    mean_below = sums[:-1] / np.maximum(below, 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(middles[np.argmax(below * above * np.square(mean_below - mean_above))])
