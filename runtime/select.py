"""What the forward process says about a slice: anomaly map, t_e, threshold and verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .forward import Step

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass
class AnomalyDigest:
    """Aggregates the steps of one slice for one guidance strength; maps take constant memory.

    ``scored``: the modalities that count, as positions; all arrays below are over these.

    ``M``, ``MSE_h``, ``MSE_0``: one (C,) float64 a visited step, eqs. 12, 14, 16.
    ``t_e``: (C,) int64, the timestep of the largest M (eq. 21).
    ``H``: (C, H, W) float32, the mean of S_t up to and including t_e (eq. 20).
    """

    w: float
    scored: tuple[int, ...]
    M: list[Float64] = field(default_factory=list)
    MSE_h: list[Float64] = field(default_factory=list)
    MSE_0: list[Float64] = field(default_factory=list)
    t_e: NDArray[np.int64] = field(init=False)
    H: Float32 = field(init=False)
    _best: Float64 = field(init=False)
    _sum: Float32 = field(init=False)

    def add(self, step: Step, UGP: Float32) -> None:
        """See :class:`anofpdm.runtime.forward.Digest`."""
        scored = list(self.scored)
        x0, UGP, HGP = step.x0[scored], UGP[scored], step.HGP(self.w)[scored]
        M = mean_square(HGP - UGP)  # eq. 12
        S = np.square(HGP - x0)  # eq. 19
        if not self.M:
            self._best = np.full(len(scored), -np.inf)
            self._sum, self.H = np.zeros_like(S), np.zeros_like(S)
            self.t_e = np.zeros(len(scored), np.int64)
        self.M.append(M)
        self.MSE_h.append(S.mean(axis=(1, 2), dtype=np.float64))  # eq. 14
        self.MSE_0.append(mean_square(UGP - x0))  # eq. 16
        self._sum += S
        higher = M > self._best
        self._best[higher] = M[higher]
        self.t_e[higher] = step.t
        self.H[higher] = self._sum[higher] / np.float32(len(self.M))  # eq. 20

    def cosine(self) -> float:
        """See :func:`cosine`."""
        return float(cosine(np.array(self.MSE_h), np.array(self.MSE_0)))


def mean_square(difference: Float32) -> Float64:
    """Mean over the pixels of the square: (C, H, W) -> (C,) float64."""
    return np.asarray(np.square(difference).mean(axis=(1, 2), dtype=np.float64))


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

    Not in the paper: large where something stands out, and a better sign of it than the cosine on
    networks that have not converged.
    """
    return float(np.quantile(H.mean(axis=0), 0.99))


def threshold(H: Float32, M_best: Float64, M_max: Float64, a: float, b: float) -> float:
    """Where to cut the anomaly map (Algorithm 1); modalities' thresholds are averaged.

    Parameters
    ----------
    H : (C, H, W) float32, unfiltered
    M_best, M_max : (C,), the slice's largest M and the calibrated one
    a, b : the smallest and largest quantile, 0 <= a <= b <= 1
    """
    grid = np.linspace(b, a, 101)
    share = np.clip(M_best / M_max, 0.0, 1.0)
    index = np.rint(np.round(share, 2) * 100).astype(int)
    return float(np.mean([np.quantile(h, grid[i]) for h, i in zip(H, index, strict=True)]))
