"""Choosing when to stop early, from curves that were recorded to the end."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.calibration import Candidate, EarlyStop
from anofpdm.runtime.stop import StopRule

from .sweep import Curves
from .threshold import best_threshold

_DROPS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_PATIENCES = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80)
# A rule has to save at least this share of the steps.
_WORTH = 0.1


def choose_stop(
    curves: Curves, unhealthy: NDArray[np.bool_], full: Candidate, verdict: str
) -> EarlyStop | None:
    """The cheapest rule that keeps t_e on 99 % of the slices and does not lower the accuracy.

    Only rules that save a tenth of the steps count. Where none of them is safe, the one that keeps
    t_e most often, with what it was found to do, to be used on request only; None where no rule
    saves that much.

    Parameters
    ----------
    curves : of the full sweep, ending at ``full.L``
    unhealthy : (N,) image-level labels
    full : the candidate that was chosen; its ``w`` decides which curves
    verdict : ``cosine`` or ``map``, whose accuracy counts
    """
    n = len(curves.timesteps)
    found = [
        _try(curves, unhealthy, full, verdict, StopRule(drop, patience))
        for drop, patience in itertools.product(_DROPS, _PATIENCES)
        if patience < n
    ]
    saving = [one for one in found if one.mean_steps <= (1 - _WORTH) * n]
    safe = [one for one in saving if one.safe]
    if safe:
        return min(safe, key=lambda one: one.mean_steps)
    return max(saving, key=lambda one: (one.agreement, -one.mean_steps), default=None)


def _try(
    curves: Curves, unhealthy: NDArray[np.bool_], full: Candidate, verdict: str, rule: StopRule
) -> EarlyStop:
    k = curves.w.index(full.w)
    M, N = curves.M[:, k], len(unhealthy)
    steps = rule.steps(M)
    taken = np.arange(M.shape[1]) < steps[:, None]
    stopped = np.where(taken[..., None], M, -np.inf).argmax(axis=1)
    agreement = (stopped == M.argmax(axis=1)).all(axis=1).mean()
    cosines = prefix_cosine(curves.MSE_h[:, k], curves.MSE_0)[np.arange(N), steps - 1]
    Cos_w, cosine_accuracy = best_threshold(cosines, unhealthy)
    M_max = np.where(taken[..., None], M, -np.inf).max(axis=(0, 1))
    peaks = curves.peak[np.arange(N), k, steps - 1]
    minus_H_99, map_accuracy = best_threshold(-peaks, unhealthy)
    return EarlyStop(
        drop=rule.drop,
        patience=rule.patience,
        Cos_w=Cos_w,
        H_99=-minus_H_99,
        M_max=tuple(float(value) for value in M_max),
        agreement=float(agreement),
        accuracy=cosine_accuracy if verdict == "cosine" else map_accuracy,
        full_accuracy=full.accuracy(verdict),
        mean_steps=float(steps.mean()),
        full_steps=M.shape[1],
    )


def prefix_cosine(MSE_h: NDArray[np.float64], MSE_0: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cosine (eq. 18) if the process ended at each step: (N, n, C) twice -> (N, n)."""
    h, zero = MSE_h.mean(axis=-1), MSE_0.mean(axis=-1)
    dot, hh, oo = ((a * b).cumsum(axis=1) for a, b in ((h, zero), (h, h), (zero, zero)))
    norms = np.sqrt(hh * oo)
    return np.where(norms > 0, dot / np.where(norms > 0, norms, 1), 1.0)
