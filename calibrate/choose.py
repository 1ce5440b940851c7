"""Choosing w, thresholds, M_max and L from image-level labels (paper, sections 4.2 and 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.select import cosine

from .sweep import Curves

_NEARLY_BEST = 0.99


@dataclass(frozen=True)
class Candidate:
    """One (L, w) that was tried: the best threshold of either verdict, and its accuracy."""

    L: int
    w: float
    Cos_w: float
    cosine_accuracy: float
    H_99: float
    map_accuracy: float

    def accuracy(self, verdict: str) -> float:
        """The accuracy of this verdict, ``cosine`` or ``map``."""
        return self.cosine_accuracy if verdict == "cosine" else self.map_accuracy


@dataclass(frozen=True)
class Choice:
    """What was chosen, among which candidates. ``M_max``: (C,), over all slices."""

    verdict: str
    best: Candidate
    M_max: tuple[float, ...]
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
        If the labels hold one class only, or the network ignores them.
    """
    if unhealthy.all() or not unhealthy.any():
        which = "unhealthy" if unhealthy.all() else "healthy"
        raise CohortError(f"all slices are {which}: calibration needs both classes")
    candidates = []
    for L in sorted(lengths):
        part = curves.up_to(L)
        for k, w in enumerate(part.w):
            cosines = cosine(part.MSE_h[:, k], part.MSE_0)
            Cos_w, cosine_accuracy = best_threshold(cosines, unhealthy)
            minus_H_99, map_accuracy = best_threshold(-part.peak[:, k, -1], unhealthy)
            candidates.append(Candidate(L, w, Cos_w, cosine_accuracy, -minus_H_99, map_accuracy))
    good = _NEARLY_BEST * max(c.accuracy(verdict) for c in candidates)
    L = min(c.L for c in candidates if c.accuracy(verdict) >= good)
    at_L = [c for c in candidates if c.L == L]
    good = _NEARLY_BEST * max(c.accuracy(verdict) for c in at_L)
    best = max((c for c in at_L if c.accuracy(verdict) >= good), key=lambda c: c.w)
    M = curves.up_to(L).M[:, curves.w.index(best.w)]
    M_max = tuple(float(value) for value in M.max(axis=(0, 1)))
    if min(M_max) <= 0:
        raise CohortError(
            "the network answers the same with and without the label: train it longer, on slices "
            "of both classes"
        )
    return Choice(verdict, best, M_max, tuple(candidates))


def best_threshold(
    statistic: NDArray[np.float64], unhealthy: NDArray[np.bool_]
) -> tuple[float, float]:
    """The threshold of best accuracy for "unhealthy when the statistic is at most this".

    Lies half-way between the two neighbouring values. Among equally accurate ones, the widest gap
    between neighbours is taken.

    Returns
    -------
    threshold, accuracy
    """
    order = np.argsort(statistic)
    values, labels = statistic[order], unhealthy[order]
    # Position i: the i smallest are called unhealthy.
    correct = np.concatenate([[0], np.cumsum(labels)]) + np.concatenate(
        [np.cumsum(~labels[::-1])[::-1], [0]]
    )
    margin = 1e-6 * max(1.0, float(np.abs(values).max()))
    edges = np.concatenate([[values[0] - margin], values, [values[-1] + margin]])
    gap = np.diff(edges)
    correct = np.where(gap > 0, correct, -1)
    i = max(range(len(correct)), key=lambda j: (correct[j], gap[j]))
    return float((edges[i] + edges[i + 1]) / 2), float(correct[i] / len(values))
