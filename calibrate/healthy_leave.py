"""Choosing when slices leave as healthy, from curves that were recorded to the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.calibration import Candidate, HealthyLeave
from anofpdm.runtime.stop import LeaveRule

from .choose import Labels, called, candidate
from .logistic import left_out
from .sweep import Curves

_MARGINS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
# A rule has to keep this share of the verdicts, and to save at least that share of the steps.
_AGREEMENT, _WORTH = 0.99, 0.1


def choose_leave(
    curves: Curves, labels: Labels, full: Candidate, verdict: str
) -> HealthyLeave | None:
    """The rule with the widest bounds that keeps 99 % of the verdicts on patients left out, and
    loses none of their unhealthy slices that are found without it.

    For each group of patients thresholds and bounds are made by the others alone; L, w and the
    margin that comes out of it by all. None where no rule saves a tenth of the steps, there are too
    few patients to tell, or neighbours count: what a slice that left says of those beside it would
    depend on where it left.

    Parameters
    ----------
    curves : of the full sweep, ending at ``full.L``
    full : the candidate that was chosen
    verdict : ``cosine`` or ``calibrated``, whose verdicts are to be kept
    """
    if labels.beside:
        return None
    n, folds = len(curves.timesteps), []
    for kept, judged in left_out(labels.patients, labels.unhealthy):
        others, rest = curves.take(kept), labels.take(kept)
        thresholds = candidate(others, full.L, full.w, rest)
        least = _least(others, rest, thresholds, verdict)
        if least is not None:
            folds.append(_Fold(least, curves.take(judged), labels.take(judged), thresholds))
    least = _least(curves, labels, full, verdict)
    if not folds or least is None:
        return None
    for margin in _MARGINS:
        tried = [fold.tried(_rule(margin, fold.least), verdict) for fold in folds]
        found, kept_by_rule, steps = (np.concatenate(column) for column in zip(*tried, strict=True))
        changed, sick = found != kept_by_rule, np.concatenate([f.labels.unhealthy for f in folds])
        lost = found & ~kept_by_rule & sick
        if changed.mean() <= 1 - _AGREEMENT and not lost.any():
            if steps.mean() > (1 - _WORTH) * n:
                return None
            return HealthyLeave(
                _rule(margin, least).bounds, margin, float(1 - changed.mean()),
                float(steps.mean()), n,
            )  # fmt: skip
    return None


@dataclass(frozen=True)
class _Fold:
    """A group of patients, and what the others say: thresholds, and the ``least`` of M."""

    least: NDArray[np.float64]
    curves: Curves
    labels: Labels
    thresholds: Candidate

    def tried(
        self, rule: LeaveRule, verdict: str
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
        """Which slices are called unhealthy without the rule, which with it, and the steps that
        each takes: (N,) each."""
        M, judge = _M(self.curves, self.thresholds.w), (self.curves, self.labels, self.thresholds)
        left = rule.healthy(M)
        return called(*judge, verdict), called(*judge, verdict, left), rule.steps(M)


def _M(curves: Curves, w: float) -> NDArray[np.float64]:
    return curves.M[:, curves.w.index(w)]


def _least(
    curves: Curves, labels: Labels, full: Candidate, verdict: str
) -> NDArray[np.float64] | None:
    """(n, C): the least of the largest M so far, over slices called unhealthy; None without any."""
    unhealthy = called(curves, labels, full, verdict)
    if not unhealthy.any():
        return None
    best = np.maximum.accumulate(_M(curves, full.w)[unhealthy], axis=1)
    return np.asarray(best.min(axis=0))


def _rule(margin: float, least: NDArray[np.float64]) -> LeaveRule:
    return LeaveRule(tuple(tuple(float(v) for v in bound) for bound in margin * least))
