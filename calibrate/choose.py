"""Choosing w, thresholds, M_max and L from image-level labels (paper, sections 4.2 and 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.calibration import Candidate
from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.select import cosine

from .sweep import Curves
from .threshold import best_threshold

_NEARLY_BEST = 0.99


@dataclass(frozen=True)
class Choice:
    """What was chosen, among which candidates."""

    verdict: str
    best: Candidate
    candidates: tuple[Candidate, ...]


def choose(
    curves: Curves, unhealthy: NDArray[np.bool_], lengths: tuple[int, ...], verdict: str = "cosine"
) -> Choice:
    """Choose the smallest L, and for it the largest w, whose accuracy is within 99 % of the best.

    Parameters
    ----------
    curves : of a sweep that reaches the largest of ``lengths``
    unhealthy : (N,) image-level labels
    verdict : ``cosine`` or ``map``, whose accuracy decides

    Raises
    ------
    CohortError
        If there are no slices, the labels hold one class only, or the network ignores them.
    """
    check_labels(unhealthy, "the validation slices")
    candidates = [
        candidate(curves.up_to(L), L, w, unhealthy) for L in sorted(set(lengths)) for w in curves.w
    ]
    good = _NEARLY_BEST * max(c.accuracy(verdict) for c in candidates)
    L = min(c.L for c in candidates if c.accuracy(verdict) >= good)
    at_L = [c for c in candidates if c.L == L]
    good = _NEARLY_BEST * max(c.accuracy(verdict) for c in at_L)
    best = max((c for c in at_L if c.accuracy(verdict) >= good), key=lambda c: c.w)
    if min(best.M_max) <= 0:
        raise CohortError(
            "the network answers the same with and without the label: train it longer, on slices "
            "of both classes"
        )
    return Choice(verdict, best, tuple(candidates))


def candidate(curves: Curves, L: int, w: float, unhealthy: NDArray[np.bool_]) -> Candidate:
    """The best thresholds for one guidance strength; ``curves`` end at ``L``."""
    k = curves.w.index(w)
    Cos_w, cosine_accuracy = best_threshold(cosine(curves.MSE_h[:, k], curves.MSE_0), unhealthy)
    minus_H_99, map_accuracy = best_threshold(-curves.peak[:, k, -1], unhealthy)
    M_max = curves.M[:, k].max(axis=(0, 1))
    return Candidate(
        L=L,
        w=w,
        Cos_w=Cos_w,
        cosine_accuracy=cosine_accuracy,
        H_99=-minus_H_99,
        map_accuracy=map_accuracy,
        M_max=tuple(float(value) for value in M_max),
    )


def check_labels(unhealthy: NDArray[np.bool_], what: str) -> None:
    """Raise CohortError unless there are slices of both classes."""
    if not len(unhealthy):
        raise CohortError(f"{what}: there are none; calibration needs some of both classes")
    if unhealthy.all() or not unhealthy.any():
        which = "unhealthy" if unhealthy.all() else "healthy"
        raise CohortError(
            f"{what} are all {which}: no accuracy can be computed, calibration needs both classes"
        )
