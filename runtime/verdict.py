"""Healthy or unhealthy: the paper's cosine, or a decision calibrated on two other statistics.

Both go by numbers that the forward process yields anyway, and both are calibrated from image-level
labels alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
VERDICTS = ("cosine", "calibrated")
_TINY = 1e-12


@dataclass(frozen=True)
class Statistics:
    """What verdicts go by: :func:`cosine`, :func:`peak` and :func:`alignment` of a slice."""

    cosine: float
    peak: float
    alignment: float


@dataclass(frozen=True)
class Logistic:
    """The calibrated decision: a logistic regression on the logarithm of the peak (how much stands
    out) and the alignment (whether it speaks against "healthy"), with weights in their own units.
    """

    intercept: float
    log_peak: float
    alignment: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) for v in (self.intercept, self.log_peak, self.alignment)):
            raise ValueError("the logistic decision needs finite numbers")

    def score(self, peak: Float64, alignment: Float64) -> Float64:
        """Log odds of being unhealthy: (...) twice -> (...)."""
        log_peak, aligned = features(peak, alignment)
        return np.asarray(self.intercept + self.log_peak * log_peak + self.alignment * aligned)

    def log_odds(self, statistics: Statistics) -> float:
        """Of being unhealthy, on one slice."""
        return float(self.score(np.array(statistics.peak), np.array(statistics.alignment)))


def probability(log_odds: float) -> float:
    """Log odds as a probability, in 0..1."""
    return 0.5 * (1 + math.tanh(log_odds / 2))


def features(peak: Float64, alignment: Float64) -> Float64:
    """What the calibrated decision is linear in: (...) twice -> (2, ...)."""
    return np.stack([np.log(np.maximum(peak, _TINY)), alignment])


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


def peak(H: Float32) -> float:
    """The 99 % quantile of the anomaly map, modalities averaged: (C, H, W) -> a number.

    Not in the paper: large where something stands out.
    """
    return float(np.quantile(H.mean(axis=0), 0.99))


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
