"""95 % confidence intervals by resampling patients."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Interval = tuple[float, float]
_DRAWS, _PERCENTILES = 2000, (2.5, 97.5)
_BINS = 4096


class Bootstrap:
    """Draws P patients with replacement, 2000 times, and takes percentiles of a metric.

    Patients, not slices, are drawn, since slices of one patient are correlated.

    Parameters
    ----------
    patients : (N,) patient of each item; repeated names are one patient
    """

    def __init__(self, patients: Sequence[str] | NDArray[np.str_], seed: int = 0) -> None:
        self._names = np.unique(patients)
        rng = np.random.Generator(np.random.Philox(seed))
        P = len(self._names)
        # (draws, P) how often each patient is in a draw
        self._weights = rng.multinomial(P, np.full(P, 1 / P), _DRAWS).astype(np.float64)

    def mean(self, patients: NDArray[np.str_], values: NDArray[np.generic]) -> Interval:
        """Interval of the mean over items.

        Parameters
        ----------
        patients : (n,) patient of each item
        values : (n,) numbers; those that are not finite are ignored
        """
        numbers = np.asarray(values, np.float64)
        finite = np.isfinite(numbers)
        row = np.searchsorted(self._names, patients[finite])
        P = len(self._names)
        total = self._weights @ np.bincount(row, numbers[finite], P)
        return _percentiles(total, self._weights @ np.bincount(row, minlength=P))

    def average_precision(
        self,
        patients: NDArray[np.str_],
        scores: Sequence[NDArray[np.floating]],
        positive: Sequence[NDArray[np.bool_]],
    ) -> Interval:
        """Interval of the area under the precision-recall curve of pixels pooled over items.

        Scores are compared in 4096 bins of equally many pixels.

        Parameters
        ----------
        patients : (n,) patient of each item
        scores, positive : n arrays of (pixels,); higher scores should be positive
        """
        if not len(patients):
            return float("nan"), float("nan")
        edges = np.quantile(np.concatenate(scores), np.linspace(0, 1, _BINS + 1)[1:-1])
        pixels, hits = np.zeros((2, len(self._names), _BINS))
        for patient, score, marked in zip(patients, scores, positive, strict=True):
            bins, row = np.searchsorted(edges, score), np.searchsorted(self._names, patient)
            pixels[row] += np.bincount(bins, minlength=_BINS)
            hits[row] += np.bincount(bins[marked], minlength=_BINS)
        # Cumulative from the highest scores down, as the threshold falls.
        predicted, true = pixels[:, ::-1].cumsum(axis=1), hits[:, ::-1].cumsum(axis=1)
        areas = np.empty(_DRAWS)
        for i, weights in enumerate(self._weights):
            all_predicted, all_true = weights @ predicted, weights @ true
            precision = all_true / np.maximum(all_predicted, 1)
            gain = np.diff(all_true, prepend=0.0)
            areas[i] = (precision * gain).sum()
        return _percentiles(areas, self._weights @ hits.sum(axis=1))


def _percentiles(total: Float64, count: Float64) -> Interval:
    """Percentiles of total / count over the draws whose count is above 0."""
    valid = count > 0
    if not valid.any():
        return float("nan"), float("nan")
    low, high = np.percentile(total[valid] / count[valid], _PERCENTILES)
    return float(low), float(high)
