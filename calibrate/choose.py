"""Choosing w, L, M_max and the decision from image-level labels (paper, sections 4.2 and 4.3)."""

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
    """Image-level labels of N slices, and the neighbours that their statistics are averaged over.

    ``windows`` are those of :func:`anofpdm.calibrate.windows.neighbour_windows`.
    """

    unhealthy: NDArray[np.bool_]  # (N,) whether the slice shows a lesion
    patients: NDArray[np.str_]  # (N,) patient of the slice
    windows: Sequence[Window[int]] | None = None  # (N,) neighbour windows; None: no averaging

    def take(self, keep: NDArray[np.bool_]) -> "Labels":
        """The labels where ``keep``, (N,), is true; neighbours that are not kept are dropped."""
        return Labels(self.unhealthy[keep], self.patients[keep], self._windows_of(keep))

    def _windows_of(self, keep: NDArray[np.bool_]) -> Sequence[Window[int]] | None:
        if self.windows is None:
            return None
        index = np.cumsum(keep) - 1
        return [
            [(weight, int(index[i])) for weight, i in window if keep[i]]
            for window, kept in zip(self.windows, keep, strict=True)
            if kept
        ]

    def window_means(self, statistics: SliceStatistics) -> SliceStatistics:
        """Cosine and alignment averaged over each slice's window, as at inference.

        The map's peak stays: the sweep computes it from the window's map.
        """
        if self.windows is None:
            return statistics
        return SliceStatistics(
            self._average(statistics.cosine),
            self._average(statistics.alignment),
            statistics.map_peak,
        )

    def _average(self, values: Float64) -> Float64:
        windows = self.windows or ()
        return np.array(
            [window_weights(window) @ values[[i for _, i in window]] for window in windows]
        )


@dataclass(frozen=True)
class Choice:
    """The choice of L, w and decision, and the candidates it was made from."""

    decision: str  # cosine or calibrated
    best: Candidate  # the chosen L and w with their thresholds
    candidates: tuple[Candidate, ...]  # every L and w, ascending
    # By decision: accuracy on patients left out of the whole choice (L, w and thresholds); None
    # where leaving out any patient leaves one class only.
    cross_validated: Mapping[str, float | None]


def choose(curves: Mapping[int, Curves], labels: Labels, decision: str | None = None) -> Choice:
    """Choose the smallest L, and for it the largest w, whose accuracy is within 99 % of the best.

    Parameters
    ----------
    curves : by L
    decision : ``cosine`` or ``calibrated``, whose accuracy is compared; None for the one that is
        more accurate on left-out patients

    Raises
    ------
    CohortError
        If there are no slices, the labels are all of one class, there are too few patients for
        the decision, or the network ignores the labels.
    """
    check_labels(labels.unhealthy, "the validation slices")
    candidates = _candidates(curves, labels)
    if decision == "calibrated" and candidates[0].calibrated_accuracy is None:
        raise CohortError(
            "the accuracy of the calibrated decision is measured on left-out patients: give "
            "slices of both classes from two patients or more, or choose the cosine"
        )
    best = _best_by_decision(candidates)
    accuracies = _cross_validated(curves, labels)
    chosen = decision or max(best, key=lambda name: accuracies.get(name) or 0.0)
    if min(best[chosen].M_max) <= 0:
        raise CohortError(
            "the network answers the same with and without the label: train it longer, on slices "
            "of both classes"
        )
    return Choice(chosen, best[chosen], candidates, accuracies)


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
    """Accuracy of the calibrated decision on slices of patients left out of its fit.

    None where no fit is possible. ``statistics`` are averaged over windows already.
    """
    correct = []
    for fitted, tested in leave_patients_out(labels.patients, labels.unhealthy):
        decision = fit(statistics.take(fitted), labels.unhealthy[fitted])
        log_odds = decision.log_odds(statistics.take(tested))
        correct.append((log_odds >= 0) == labels.unhealthy[tested])
    return float(np.concatenate(correct).mean()) if correct else None


def check_labels(unhealthy: NDArray[np.bool_], what: str) -> None:
    """Raise CohortError unless there are slices of both classes; ``what`` names them."""
    if not len(unhealthy):
        raise CohortError(f"{what}: there are none; calibration needs some of both classes")
    if unhealthy.all() or not unhealthy.any():
        which = "unhealthy" if unhealthy.all() else "healthy"
        raise CohortError(
            f"{what} are all {which}: no accuracy can be computed, calibration needs both classes"
        )


def _candidates(curves: Mapping[int, Curves], labels: Labels) -> tuple[Candidate, ...]:
    return tuple(candidate(curves[L], L, w, labels) for L in sorted(curves) for w in curves[L].w)


def _best_by_decision(candidates: tuple[Candidate, ...]) -> dict[str, Candidate]:
    """The best candidate of each decision whose accuracy is defined."""
    defined = [name for name in DECISIONS if candidates[0].accuracy(name) is not None]
    return {name: _best(candidates, name) for name in defined}


def _best(candidates: tuple[Candidate, ...], decision: str) -> Candidate:
    L = min(nearly.L for nearly in _nearly_best(candidates, decision))
    at_L = tuple(tried for tried in candidates if tried.L == L)
    return max(_nearly_best(at_L, decision), key=lambda nearly: nearly.w)


def _nearly_best(candidates: tuple[Candidate, ...], decision: str) -> list[Candidate]:
    accuracies = [tried.accuracy(decision) or 0.0 for tried in candidates]
    least = _NEARLY_BEST * max(accuracies)
    return [
        tried for tried, accuracy in zip(candidates, accuracies, strict=True) if accuracy >= least
    ]


def _cross_validated(curves: Mapping[int, Curves], labels: Labels) -> dict[str, float | None]:
    """The whole choice is repeated without each group of patients, and tested on that group."""
    correct: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in DECISIONS}
    for fitted, tested in leave_patients_out(labels.patients, labels.unhealthy):
        others = {L: curves[L].take(fitted) for L in curves}
        tested_labels = labels.take(tested)
        for name, best in _best_by_decision(_candidates(others, labels.take(fitted))).items():
            decisions = decided_by(curves[best.L].take(tested), tested_labels, best, name)
            correct[name].append(decisions == tested_labels.unhealthy)
    return {
        name: float(np.concatenate(parts).mean()) if parts else None
        for name, parts in correct.items()
    }


def decided_by(
    curves: Curves, labels: Labels, chosen: Candidate, decision: str
) -> NDArray[np.bool_]:
    """Which slices a candidate calls unhealthy, by ``cosine`` or ``calibrated``: (N,)."""
    statistics = labels.window_means(curves.statistics(curves.w.index(chosen.w)))
    if decision == "cosine":
        return np.asarray(statistics.cosine <= chosen.Cos_w)
    return np.asarray(chosen.logistic.log_odds(statistics) >= 0)
