"""Choosing w, L, M_max and the verdict from image-level labels (paper, sections 4.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.bundle.calibration import Candidate
from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.method.decision import VERDICTS, Statistics

from .beside import Beside
from .decision_fit import best_threshold, fit, left_out
from .sweep import Curves

_NEARLY_BEST = 0.99


@dataclass(frozen=True)
class Labels:
    """Of N slices: ``unhealthy``, the image-level labels; ``patients``, whose they are; ``beside``:
    which of them count together, None where each is judged alone."""

    unhealthy: NDArray[np.bool_]
    patients: NDArray[np.str_]
    beside: Beside | None = None

    def take(self, keep: NDArray[np.bool_]) -> Labels:
        """Of these slices alone."""
        beside = self.beside.take(keep) if self.beside else None
        return Labels(self.unhealthy[keep], self.patients[keep], beside)

    def together(self, alone: Statistics) -> Statistics:
        """What verdicts go by: that of each slice and its neighbours. The map's peak is so
        already."""
        if not self.beside:
            return alone
        average = self.beside.average
        return Statistics(average(alone.cosine), average(alone.alignment), alone.map_peak)


@dataclass(frozen=True)
class Choice:
    """What was chosen, among which candidates.

    ``cross_validated``: accuracy of either verdict on patients who took no part, neither in fitting
    its thresholds nor in choosing L and w; None where that cannot be told.
    """

    verdict: str
    best: Candidate
    candidates: tuple[Candidate, ...]
    cross_validated: Mapping[str, float | None]


def choose(curves: Mapping[int, Curves], labels: Labels, verdict: str | None = None) -> Choice:
    """Choose the smallest L, and for it the largest w, whose accuracy is within 99 % of the best.

    Parameters
    ----------
    curves : by L
    verdict : ``cosine`` or ``calibrated``, whose accuracy decides; None for the one that does
        better on patients who took no part in choosing

    Raises
    ------
    CohortError
        If there are no slices, the labels hold one class only, there are too few patients for the
        verdict, or the network ignores the labels.
    """
    check_labels(labels.unhealthy, "the validation slices")
    candidates = _candidates(curves, labels)
    if verdict == "calibrated" and candidates[0].calibrated_accuracy is None:
        raise CohortError(
            "the calibrated verdict is judged on patients that it was not fitted to: give slices "
            "of both classes from two patients or more, or choose the cosine"
        )
    best = _best_of_each(candidates)
    found = _cross_validated(curves, labels)
    chosen = verdict or max(best, key=lambda name: found.get(name) or 0.0)
    if min(best[chosen].M_max) <= 0:
        raise CohortError(
            "the network answers the same with and without the label: train it longer, on slices "
            "of both classes"
        )
    return Choice(chosen, best[chosen], candidates, found)


def candidate(curves: Curves, L: int, w: float, labels: Labels) -> Candidate:
    """Both verdicts for one guidance strength; ``curves`` end at ``L``."""
    k = curves.w.index(w)
    statistics = labels.together(curves.statistics(k))
    Cos_w, cosine_accuracy = best_threshold(statistics.cosine, labels.unhealthy)
    return Candidate(
        L=L,
        w=w,
        Cos_w=Cos_w,
        cosine_accuracy=cosine_accuracy,
        logistic=fit(statistics, labels.unhealthy),
        calibrated_accuracy=cross_validated(statistics, labels),
        M_max=tuple(float(value) for value in curves.M[:, k].max(axis=(0, 1))),
    )


def cross_validated(statistics: Statistics, labels: Labels) -> float | None:
    """Accuracy of the calibrated verdict on slices of patients that were left out of its fit; None
    if none can be. ``statistics``: of slices and their neighbours."""
    right = []
    for kept, judged in left_out(labels.patients, labels.unhealthy):
        fitted = fit(statistics.take(kept), labels.unhealthy[kept])
        log_odds = fitted.log_odds(statistics.take(judged))
        right.append((log_odds >= 0) == labels.unhealthy[judged])
    return float(np.concatenate(right).mean()) if right else None


def check_labels(unhealthy: NDArray[np.bool_], what: str) -> None:
    """Raise CohortError unless there are slices of both classes."""
    if not len(unhealthy):
        raise CohortError(f"{what}: there are none; calibration needs some of both classes")
    if unhealthy.all() or not unhealthy.any():
        which = "unhealthy" if unhealthy.all() else "healthy"
        raise CohortError(
            f"{what} are all {which}: no accuracy can be computed, calibration needs both classes"
        )


def _candidates(curves: Mapping[int, Curves], labels: Labels) -> tuple[Candidate, ...]:
    return tuple(candidate(curves[L], L, w, labels) for L in sorted(curves) for w in curves[L].w)


def _best_of_each(candidates: tuple[Candidate, ...]) -> dict[str, Candidate]:
    """Of each verdict that can be judged."""
    judged = [name for name in VERDICTS if candidates[0].accuracy(name) is not None]
    return {name: _best(candidates, name) for name in judged}


def _best(candidates: tuple[Candidate, ...], verdict: str) -> Candidate:
    L = min(one.L for one in _nearly_best(candidates, verdict))
    at_L = tuple(one for one in candidates if one.L == L)
    return max(_nearly_best(at_L, verdict), key=lambda one: one.w)


def _nearly_best(candidates: tuple[Candidate, ...], verdict: str) -> list[Candidate]:
    accuracies = [one.accuracy(verdict) or 0.0 for one in candidates]
    good = _NEARLY_BEST * max(accuracies)
    return [one for one, found in zip(candidates, accuracies, strict=True) if found >= good]


def _cross_validated(curves: Mapping[int, Curves], labels: Labels) -> dict[str, float | None]:
    """The whole choice is made again for each group of patients, by the others alone."""
    right: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in VERDICTS}
    for kept, judged in left_out(labels.patients, labels.unhealthy):
        others = {L: curves[L].take(kept) for L in curves}
        theirs = labels.take(judged)
        for name, best in _best_of_each(_candidates(others, labels.take(kept))).items():
            found = called(curves[best.L].take(judged), theirs, best, name)
            right[name].append(found == theirs.unhealthy)
    return {
        name: float(np.concatenate(found).mean()) if found else None
        for name, found in right.items()
    }


def called(curves: Curves, labels: Labels, chosen: Candidate, verdict: str) -> NDArray[np.bool_]:
    """Which slices a candidate calls unhealthy, by ``cosine`` or ``calibrated``: (N,)."""
    statistics = labels.together(curves.statistics(curves.w.index(chosen.w)))
    if verdict == "cosine":
        return np.asarray(statistics.cosine <= chosen.Cos_w)
    return np.asarray(chosen.logistic.log_odds(statistics) >= 0)
