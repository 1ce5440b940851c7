"""The image-level decision: the paper's cosine, or one calibrated on it and two other numbers.

Both go by numbers that the forward process yields anyway, and both are calibrated from image-level
labels alone.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
DECISIONS = ("cosine", "calibrated")
_LEAST_PEAK = 1e-6


@dataclass(frozen=True)
class SliceStatistics:
    """What image-level decisions go by, for slices (...).

    Where neighbouring slices count, the first two are averages over the window, and the peak is
    that of the map that the whole window makes.
    """

    cosine: Float64  # (...) eq. 18
    alignment: Float64  # (...) of guidance with the unguided error
    map_peak: Float64  # (...) logarithm of the map's largest value

    def take(self, slices: NDArray[np.bool_]) -> "SliceStatistics":
        """Of these slices alone."""
        return SliceStatistics(self.cosine[slices], self.alignment[slices], self.map_peak[slices])

    def features(self) -> Float64:
        """What the calibrated decision is linear in, (3, ...): the alignment, the angle whose
        cosine eq. 18 is, in radians, and the peak."""
        return np.stack([self.alignment, np.arccos(np.clip(self.cosine, -1, 1)), self.map_peak])


@dataclass(frozen=True)
class LogisticDecision:
    """The calibrated decision: a logistic regression on the alignment (whether guidance speaks
    against "healthy"), the angle between the error sequences (how much it changes) and the peak of
    the anomaly map (how much of it is in one place), with weights in their own units.
    """

    intercept: float
    alignment: float
    angle: float
    map_peak: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.intercept, self.alignment, self.angle, self.map_peak)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("the logistic decision needs finite numbers")

    def log_odds(self, statistics: SliceStatistics) -> Float64:
        """Of being unhealthy: (...)."""
        weights = np.array([self.alignment, self.angle, self.map_peak])
        return np.asarray(self.intercept + np.tensordot(weights, statistics.features(), 1))


def probability(log_odds: float) -> float:
    """Log odds as a probability, in 0..1."""
    return 0.5 * (1 + math.tanh(log_odds / 2))


def cosine(MSE_h: Float64, MSE_0: Float64) -> Float64:
    """Cosine between the two error sequences (eq. 18); modalities are averaged first.

    Parameters
    ----------
    MSE_h, MSE_0 : (..., n, C) over the n visited steps

    Returns
    -------
    (...) in 0..1; 1 where one of the sequences is all zero, as for two equal predictions
    """
    h, zero = MSE_h.mean(axis=-1), MSE_0.mean(axis=-1)
    norms = np.linalg.norm(h, axis=-1) * np.linalg.norm(zero, axis=-1)
    dot = (h * zero).sum(axis=-1)
    return np.where(norms > 0, dot / np.where(norms > 0, norms, 1), 1.0)


def alignment(M: Float64, MSE_h: Float64, MSE_0: Float64) -> Float64:
    """Cosine between the guidance, HGP - UGP, and the unguided error, UGP - x0, over all visited
    steps, modalities and pixels.

    Not in the paper. Positive: guiding to "healthy" leads away from the slice, as a lesion makes
    it; negative: towards it, as on slices that are healthy. With a = UGP - x0 and b = HGP - UGP,
    ``MSE_0``, ``M`` and ``MSE_h`` are the means of a^2, b^2 and (a + b)^2, which is where the mean
    of a b comes from: no pixel is looked at again.

    Parameters
    ----------
    M, MSE_h, MSE_0 : (..., n, C) over the n visited steps

    Returns
    -------
    (...) in -1..1; 0 where guidance changes nothing, or there is no error
    """
    a2, b2, ab2 = (np.asarray(curve).sum(axis=(-2, -1)) for curve in (MSE_0, M, MSE_h))
    norm = np.sqrt(a2 * b2)
    return np.where(norm > 0, (ab2 - a2 - b2) / np.where(norm > 0, 2 * norm, 1), 0.0)


def map_peak(smoothed: NDArray[np.float32]) -> float:
    """Natural logarithm of the largest value of the map that is cut, (H, W); of 1e-6 at least.

    Not in the paper, whose decision does not look at the map.
    """
    return math.log(max(float(smoothed.max()), _LEAST_PEAK))
