"""Plausibility check: is a volume in the distribution that a bundle was calibrated on?

Thresholds say nothing about a volume that the network does not know: another modality, a head on
its side, noise. The unguided prediction then misses the slices by more, or by less, than it misses
healthy slices of the calibration, which its error curve MSE_0 (eq. 16) shows, whatever the
guidance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Plausibility:
    """The distribution of MSE_0 on healthy slices of the calibration."""

    mean: tuple[float, ...]  # (n,) of ln MSE_0 (modalities averaged) at each visited timestep
    spread: tuple[float, ...]  # (n,) its standard deviation
    limit: float  # a volume whose distance is larger is out of the distribution

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.spread):
            raise ValueError("plausibility needs one mean and one spread a visited timestep")
        if not all(math.isfinite(number) for number in self.mean):
            raise ValueError("plausibility needs finite means")
        if not 0 < self.limit < math.inf:
            raise ValueError("plausibility needs a limit above 0")
        if not all(0 < number < math.inf for number in self.spread):
            raise ValueError("plausibility needs spreads above 0")

    def distance(self, MSE_0: Float64) -> float:
        """How far a slice is off: the mean over the visited steps of the absolute deviation of
        ln MSE_0 in spreads; ``MSE_0``: (n, C), or fewer steps where the slice stopped early."""
        curve = log_curve(MSE_0)
        n = len(curve)
        deviation = (curve - np.array(self.mean[:n])) / np.array(self.spread[:n])
        return float(np.abs(deviation).mean())

    def excess(self, curves: Sequence[Float64]) -> float:
        """How far off a volume is, given the MSE_0 of its slices: their median distance as a
        multiple of the limit. Above 1 it is out of the distribution."""
        return float(np.median([self.distance(curve) for curve in curves])) / self.limit


def log_curve(MSE_0: Float64) -> Float64:
    """ln of MSE_0 averaged over modalities: (..., n, C) -> (..., n)."""
    return np.asarray(np.log(np.maximum(MSE_0.mean(axis=-1), 1e-12)))
