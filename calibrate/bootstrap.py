"""95 % intervals over patients: what a figure might have been with other patients like these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Interval = tuple[float, float]
_DRAWS, _SHARE = 2000, (2.5, 97.5)
_BINS = 4096


class Bootstrap:
    """Draws P patients with replacement, 2000 times, and takes percentiles of a figure.

    Patients, not slices, are drawn: slices of one patient are alike. ``owners``: (N,) whose each
    item is.
    """

    def __init__(self, owners: Sequence[str] | NDArray[np.str_], seed: int = 0) -> None:
        self._names = np.unique(owners)
        rng = np.random.Generator(np.random.Philox(seed))
        n = len(self._names)
        self._drawn = rng.multinomial(n, np.full(n, 1 / n), _DRAWS).astype(np.float64)

    def mean(self, owners: NDArray[np.str_], values: NDArray[np.generic]) -> Interval:
        """Of the mean over items, (N,) each; NaN are left out."""
        numbers = np.asarray(values, np.float64)
        known = np.isfinite(numbers)
        place = np.searchsorted(self._names, owners[known])
        n = len(self._names)
        total = self._drawn @ np.bincount(place, numbers[known], n)
        return _percentiles(total, self._drawn @ np.bincount(place, minlength=n))

    def average_precision(
        self,
        owners: NDArray[np.str_],
        scores: Sequence[NDArray[np.floating]],
        positive: Sequence[NDArray[np.bool_]],
    ) -> Interval:
        """Of the area under the precision-recall curve of pixels pooled over items; scores are
        compared in 4096 bins that hold alike many pixels."""
        if not len(owners):
            return float("nan"), float("nan")
        edges = np.quantile(np.concatenate(scores), np.linspace(0, 1, _BINS + 1)[1:-1])
        pixels, hits = np.zeros((2, len(self._names), _BINS))
        for owner, score, marked in zip(owners, scores, positive, strict=True):
            bins, row = np.searchsorted(edges, score), np.searchsorted(self._names, owner)
            pixels[row] += np.bincount(bins, minlength=_BINS)
            hits[row] += np.bincount(bins[marked], minlength=_BINS)
        # From the highest scores down.
        found, true = pixels[:, ::-1].cumsum(axis=1), hits[:, ::-1].cumsum(axis=1)
        areas = np.empty(_DRAWS)
        for i, weights in enumerate(self._drawn):
            all_found, all_true = weights @ found, weights @ true
            precision = all_true / np.maximum(all_found, 1)
            gain = np.diff(all_true, prepend=0.0)
            areas[i] = (precision * gain).sum()
        return _percentiles(areas, self._drawn @ hits.sum(axis=1))


def _percentiles(total: Float64, count: Float64) -> Interval:
    """Of total / count over the draws in which there is anything to count."""
    some = count > 0
    if not some.any():
        return float("nan"), float("nan")
    low, high = np.percentile(total[some] / count[some], _SHARE)
    return float(low), float(high)
