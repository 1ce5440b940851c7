"""Choosing w, L, M_max and the decision from image-level labels (paper, sections 4.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.bundle.calibration import Candidate
from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.method.decision import DECISIONS, SliceStatistics
from anofpdm.runtime.refine.through_plane import Window, window_weights

from .decision_fit import best_threshold, fit, leave_patients_out
from .sweep import Curves

Float64 = NDArray[np.float64]
_NEARLY_BEST = 0.99


@dataclass(frozen=True)
class Labels:
    """Image-level labels of N slices."""

    unhealthy: NDArray[np.bool_]  # (N,)
    patients: NDArray[np.str_]  # (N,) whose they are
    windows: Sequence[Window[int]] | None = None  # (N,) neighbours that count; None: slices alone

    def take(self, keep: NDArray[np.bool_]) -> Labels:
        """Of these slices alone."""
        return Labels(self.unhealthy[keep], self.patients[keep], self._windows_of(keep))

    def _windows_of(self, keep: NDArray[np.bool_]) -> Sequence[Window[int]] | None:
        """The windows of some slices, all of whose neighbours are among them."""
        if self.windows is None:
            return None
        place = np.cumsum(keep) - 1
        return [
            [(weight, int(place[i])) for weight, i in window if keep[i]]
            for window, kept in zip(self.windows, keep, strict=True)
            if kept
        ]

    def window_means(self, alone: SliceStatistics) -> SliceStatistics:
        """The statistics of image-level decisions, averaged over each slice's window as the runtime
        does; the map's peak is that of the window's map already."""
        if self.windows is None:
            return alone
        return SliceStatistics(
            self._average(alone.cosine), self._average(alone.alignment), alone.map_peak
        )

    def _average(self, values: Float64) -> Float64:
        windows = self.windows or ()
        return np.array(
            [window_weights(window) @ values[[i for _, i in window]] for window in windows]
        )


@dataclass(frozen=True)
class Choice:
    """What was chosen, among which candidates.

    ``cross_validated``: accuracy of either decision on patients who took no part, neither in fitting
    its thresholds nor in choosing L and w; None where that cannot be told.
    """

    decision: str
    best: Candidate
    candidates: tuple[Candidate, ...]
    cross_validated: Mapping[str, float | None]


def choose(curves: Mapping[int, Curves], labels: Labels, decision: str | None = None) -> Choice:
    """Choose the smallest L, and for it the largest w, whose accuracy is within 99 % of the best.

    Parameters
    ----------
    curves : by L
    decision : ``cosine`` or ``calibrated``, whose accuracy decides; None for the one that does
        better on patients who took no part in choosing

    Raises
    ------
    CohortError
        If there are no slices, the labels hold one class only, there are too few patients for the
        decision, or the network ignores the labels.
    """
    check_labels(labels.unhealthy, "the validation slices")
    candidates = _candidates(curves, labels)
    if decision == "calibrated" and candidates[0].calibrated_accuracy is None:
        raise CohortError(
            "the calibrated decision is judged on patients that it was not fitted to: give slices "
            "of both classes from two patients or more, or choose the cosine"
        )
    best = _best_of_each(candidates)
    found = _cross_validated(curves, labels)
    chosen = decision or max(best, key=lambda name: found.get(name) or 0.0)
    if min(best[chosen].M_max) <= 0:
        raise CohortError(
            "the network answers the same with and without the label: train it longer, on slices "
            "of both classes"
        )
    return Choice(chosen, best[chosen], candidates, found)


def candidate(curves: Curves, L: int, w: float, labels: Labels) -> Candidate:
    """Both decisions for one guidance strength; ``curves`` end at ``L``."""
    k = curves.w.index(w)
    statistics = labels.window_means(curves.statistics(k))
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


def cross_validated(statistics: SliceStatistics, labels: Labels) -> float | None:
    """Accuracy of the calibrated decision on slices of patients that were left out of its fit; None
    if none can be. ``statistics``: of slices and their neighbours."""
    right = []
    for kept, judged in leave_patients_out(labels.patients, labels.unhealthy):
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
    """Of each decision that can be judged."""
    judged = [name for name in DECISIONS if candidates[0].accuracy(name) is not None]
    return {name: _best(candidates, name) for name in judged}


def _best(candidates: tuple[Candidate, ...], decision: str) -> Candidate:
    L = min(one.L for one in _nearly_best(candidates, decision))
    at_L = tuple(one for one in candidates if one.L == L)
    return max(_nearly_best(at_L, decision), key=lambda one: one.w)


def _nearly_best(candidates: tuple[Candidate, ...], decision: str) -> list[Candidate]:
    accuracies = [one.accuracy(decision) or 0.0 for one in candidates]
    good = _NEARLY_BEST * max(accuracies)
    return [one for one, found in zip(candidates, accuracies, strict=True) if found >= good]


def _cross_validated(curves: Mapping[int, Curves], labels: Labels) -> dict[str, float | None]:
    """The whole choice is made again for each group of patients, by the others alone."""
    right: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in DECISIONS}
    for kept, judged in leave_patients_out(labels.patients, labels.unhealthy):
        others = {L: curves[L].take(kept) for L in curves}
        theirs = labels.take(judged)
        for name, best in _best_of_each(_candidates(others, labels.take(kept))).items():
            found = decided_by(curves[best.L].take(judged), theirs, best, name)
            right[name].append(found == theirs.unhealthy)
    return {
        name: float(np.concatenate(found).mean()) if found else None
        for name, found in right.items()
    }


def decided_by(
    curves: Curves, labels: Labels, chosen: Candidate, decision: str
) -> NDArray[np.bool_]:
    """Which slices a candidate calls unhealthy, by ``cosine`` or ``calibrated``: (N,)."""
    statistics = labels.window_means(curves.statistics(curves.w.index(chosen.w)))
    if decision == "cosine":
        return np.asarray(statistics.cosine <= chosen.Cos_w)
    return np.asarray(chosen.logistic.log_odds(statistics) >= 0)
