"""Choosing when to stop early, from curves that were recorded to the end."""

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
_LEAST_SAVING = 0.1


def choose_stop(curves: Curves, labels: Labels, full: Candidate, decision: str) -> EarlyStop | None:
    """The cheapest rule that keeps t_e on 99 % of the slices and does not lower the accuracy.

    Rules that save less than a tenth of the steps are ignored. Where none of the others is safe,
    the one that keeps t_e most often is returned, for use on request only. The calibrated decision
    is refitted with the peak of the full sweep's map, which is that of the stopped one where t_e
    is kept.

    Parameters
    ----------
    curves : of the full sweep, ending at ``full.L``
    full : the chosen candidate; its ``w`` selects the curves
    decision : ``cosine`` or ``calibrated``, whose accuracy must not fall

    Returns
    -------
    the rule with its thresholds; None where no rule saves a tenth of the steps
    """
    n = len(curves.timesteps)
    rules = [
        fit_rule(curves, labels, full, decision, StopRule(drop, patience))
        for drop, patience in itertools.product(_DROPS, _PATIENCES)
        if patience < n
    ]
    saving = [rule for rule in rules if rule.mean_steps <= (1 - _LEAST_SAVING) * n]
    safe = [rule for rule in saving if rule.safe]
    if safe:
        return min(safe, key=lambda rule: rule.mean_steps)
    return max(saving, key=lambda rule: (rule.agreement, -rule.mean_steps), default=None)


def fit_rule(
    curves: Curves, labels: Labels, full: Candidate, decision: str, rule: StopRule
) -> EarlyStop:
    """The thresholds, accuracy and steps of one rule; parameters as for :func:`choose_stop`."""
    k, unhealthy = curves.w.index(full.w), labels.unhealthy
    M = curves.M[:, k]
    steps = rule.steps(M)
    visited = np.arange(M.shape[1]) < steps[:, None]
    stopped = np.where(visited[..., None], M, -np.inf).argmax(axis=1)
    agreement = (stopped == M.argmax(axis=1)).all(axis=1).mean()
    statistics = labels.window_means(curves.statistics(k, steps))
    Cos_w, cosine_accuracy = best_threshold(statistics.cosine, unhealthy)
    M_max = np.where(visited[..., None], M, -np.inf).max(axis=(0, 1))
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
