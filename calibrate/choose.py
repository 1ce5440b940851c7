"""Choosing w, Cos_w, M_max and L from image-level labels (paper, sections 4.2 and 4.3).

Beyond the paper, a candidate w has to be strong enough to show: on a network that has not
converged, a small w moves the guided prediction less than the network errs anyway, and the anomaly
map S = (HGP - x0)^2 then shows the error. :attr:`Candidate.strength` measures that without a mask.
"""

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
    """One (L, w) that was tried: its best threshold and the accuracy that it gives.

    ``strength``: median over unhealthy slices of M_t / MSE_0, t at its t_e: what guidance moves,
    against what the network errs without it (eqs. 12, 16).
    """

    L: int
    w: float
    Cos_w: float
    accuracy: float
    strength: float


@dataclass(frozen=True)
class Choice:
    """What was chosen, among which candidates. ``M_max``: (C,), over all slices."""

    L: int
    w: float
    Cos_w: float
    accuracy: float
    M_max: tuple[float, ...]
    candidates: tuple[Candidate, ...]

    @property
    def weak(self) -> bool:
        """Whether no candidate's guidance was stronger than the network's error."""
        return all(candidate.strength < 1 for candidate in self.candidates)


def choose(curves: Curves, unhealthy: NDArray[np.bool_], lengths: tuple[int, ...]) -> Choice:
    """Choose the smallest L, and for it the largest w, whose accuracy is within 99 % of the best.

    Only candidates whose guidance is stronger than the network's error take part; if there are
    none, all do (:attr:`Choice.weak` says so).

    Parameters
    ----------
    curves : of a sweep that reaches the largest of ``lengths``
    unhealthy : (N,) image-level labels

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
            Cos_w, accuracy = best_threshold(cosines, unhealthy)
            strength = _strength(part.M[unhealthy, k], part.MSE_0[unhealthy])
            candidates.append(Candidate(L, w, Cos_w, accuracy, strength))
    strong = [c for c in candidates if c.strength >= 1] or candidates
    good = _NEARLY_BEST * max(c.accuracy for c in strong)
    L = min(c.L for c in strong if c.accuracy >= good)
    at_L = [c for c in strong if c.L == L]
    good = _NEARLY_BEST * max(c.accuracy for c in at_L)
    best = max((c for c in at_L if c.accuracy >= good), key=lambda c: c.w)
    M = curves.up_to(L).M[:, curves.w.index(best.w)]
    M_max = tuple(float(value) for value in M.max(axis=(0, 1)))
    if min(M_max) <= 0:
        raise CohortError(
            "the network answers the same with and without the label: train it longer, on slices "
            "of both classes"
        )
    return Choice(L, best.w, best.Cos_w, best.accuracy, M_max, tuple(candidates))


def _strength(M: NDArray[np.float64], MSE_0: NDArray[np.float64]) -> float:
    """See :class:`Candidate`; (N, n, C) of unhealthy slices, modalities are averaged."""
    moved, wrong = M.mean(axis=2), MSE_0.mean(axis=2)
    at = moved.argmax(axis=1)[:, None]
    ratio = np.take_along_axis(moved, at, 1) / np.take_along_axis(wrong, at, 1).clip(1e-12)
    return float(np.median(ratio))


def best_threshold(
    cosines: NDArray[np.float64], unhealthy: NDArray[np.bool_]
) -> tuple[float, float]:
    """The threshold of best accuracy for "unhealthy when the cosine is at most this".

    Lies half-way between the two neighbouring cosines. Among equally accurate ones, the widest gap
    between neighbours is taken.

    Returns
    -------
    Cos_w, accuracy
    """
    order = np.argsort(cosines)
    values, labels = cosines[order], unhealthy[order]
    # Position i: the i smallest cosines are called unhealthy.
    correct = np.concatenate([[0], np.cumsum(labels)]) + np.concatenate(
        [np.cumsum(~labels[::-1])[::-1], [0]]
    )
    edges = np.concatenate([[values[0] - 1e-6], values, [values[-1] + 1e-6]])
    gap = np.diff(edges)
    correct = np.where(gap > 0, correct, -1)
    i = max(range(len(correct)), key=lambda j: (correct[j], gap[j]))
    return float((edges[i] + edges[i + 1]) / 2), float(correct[i] / len(values))
