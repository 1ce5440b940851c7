"""Healthy or unhealthy: the paper's cosine, or a decision calibrated on it and the alignment.

Both go by numbers that the forward process yields anyway, and both are calibrated from image-level
labels alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
VERDICTS = ("cosine", "calibrated")


@dataclass(frozen=True)
class Statistics:
    """What verdicts go by: :func:`cosine` and :func:`alignment` of a slice."""

    cosine: float
    alignment: float


@dataclass(frozen=True)
class Logistic:
    """The calibrated decision: a logistic regression on the alignment (whether guidance speaks
    against "healthy") and the angle between the error sequences (how much it changes), with weights
    in their own units. Neither changes where all errors are scaled alike.
    """

    intercept: float
    alignment: float
    angle: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) for v in (self.intercept, self.alignment, self.angle)):
            raise ValueError("the logistic decision needs finite numbers")

    def score(self, alignment: Float64, cosine: Float64) -> Float64:
        """Log odds of being unhealthy: (...) twice -> (...)."""
        aligned, angle = features(alignment, cosine)
        return np.asarray(self.intercept + self.alignment * aligned + self.angle * angle)

    def log_odds(self, statistics: Statistics) -> float:
        """Of being unhealthy, on one slice."""
        return float(self.score(np.array(statistics.alignment), np.array(statistics.cosine)))


def probability(log_odds: float) -> float:
    """Log odds as a probability, in 0..1."""
    return 0.5 * (1 + math.tanh(log_odds / 2))


def features(alignment: Float64, cosine: Float64) -> Float64:
    """What the calibrated decision is linear in: (...) twice -> (2, ...); the second is the angle
    whose cosine eq. 18 is, in radians."""
    return np.stack([alignment, np.arccos(np.clip(cosine, -1, 1))])


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
