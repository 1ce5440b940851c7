"""Choosing when to stop early, from curves that were recorded to the end."""

from __future__ import annotations

import itertools

import numpy as np

from anofpdm.runtime.bundle.calibration import Candidate, EarlyStop
from anofpdm.runtime.method.early_stop import StopRule

from .choose import Labels, cross_validated
from .decision_fit import best_threshold, fit
from .sweep import Curves

_DROPS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_PATIENCES = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80)
# A rule has to save at least this share of the steps.
_WORTH = 0.1


def choose_stop(curves: Curves, labels: Labels, full: Candidate, decision: str) -> EarlyStop | None:
    """The cheapest rule that keeps t_e on 99 % of the slices and does not lower the accuracy.

    Only rules that save a tenth of the steps count. Where none of them is safe, the one that keeps
    t_e most often, with what it was found to do, to be used on request only; None where no rule
    saves that much. The calibrated decision is refitted with the peak of the full sweep's map, which
    is that of the stopped one where t_e is kept.

    Parameters
    ----------
    curves : of the full sweep, ending at ``full.L``
    full : the candidate that was chosen; its ``w`` decides which curves
    decision : ``cosine`` or ``calibrated``, whose accuracy counts
    """
    n = len(curves.timesteps)
    found = [
        _try(curves, labels, full, decision, StopRule(drop, patience))
        for drop, patience in itertools.product(_DROPS, _PATIENCES)
        if patience < n
    ]
    saving = [one for one in found if one.mean_steps <= (1 - _WORTH) * n]
    safe = [one for one in saving if one.safe]
    if safe:
        return min(safe, key=lambda one: one.mean_steps)
    return max(saving, key=lambda one: (one.agreement, -one.mean_steps), default=None)


def _try(
    curves: Curves, labels: Labels, full: Candidate, decision: str, rule: StopRule
) -> EarlyStop:
    k, unhealthy = curves.w.index(full.w), labels.unhealthy
    M = curves.M[:, k]
    steps = rule.steps(M)
    taken = np.arange(M.shape[1]) < steps[:, None]
    stopped = np.where(taken[..., None], M, -np.inf).argmax(axis=1)
    agreement = (stopped == M.argmax(axis=1)).all(axis=1).mean()
    statistics = labels.window_means(curves.statistics(k, steps))
    Cos_w, cosine_accuracy = best_threshold(statistics.cosine, unhealthy)
    M_max = np.where(taken[..., None], M, -np.inf).max(axis=(0, 1))
    accuracy: float | None = cosine_accuracy
    if decision == "calibrated":
        accuracy = cross_validated(statistics, labels)
    return EarlyStop(
        drop=rule.drop,
        patience=rule.patience,
        Cos_w=Cos_w,
        logistic=fit(statistics, unhealthy),
        M_max=tuple(float(value) for value in M_max),
        agreement=float(agreement),
        accuracy=accuracy or 0.0,
        full_accuracy=full.accuracy(decision) or 0.0,
        mean_steps=float(steps.mean()),
        full_steps=M.shape[1],
    )
