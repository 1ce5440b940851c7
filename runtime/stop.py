"""When a slice may leave before L (not in the paper): early stop, once the peak of M_t is certain,
or once it is certain to be healthy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class StopRule:
    """Stop once M_t stayed below ``drop`` times its maximum so far, in every modality, for
    ``patience`` visited steps in a row."""

    drop: float
    patience: int

    def __post_init__(self) -> None:
        if not 0 < self.drop <= 1 or self.patience < 1:
            raise ValueError(f"a stop rule needs 0 < drop <= 1 and patience >= 1, not {self}")

    def steps(self, M: Float64) -> NDArray[np.int64]:
        """How many visited steps are taken: (..., n, C) curves -> (...) in 1..n."""
        below = (M < self.drop * np.maximum.accumulate(M, axis=-2)).all(axis=-1)
        n = below.shape[-1]
        place = np.arange(n)
        last_above = np.maximum.accumulate(np.where(below, -1, place), axis=-1)
        certain = place - last_above >= self.patience
        return np.asarray(np.where(certain.any(axis=-1), certain.argmax(axis=-1) + 1, n), np.int64)


@dataclass
class Watch:
    """A stop rule at work on one slice, step by step."""

    rule: StopRule
    _below: int = field(default=0)

    def certain(self, M: Float64, best: Float64) -> bool:
        """Whether the slice may leave; ``M``: (C,) at this step, ``best``: (C,) so far."""
        self._below = self._below + 1 if bool((M < self.rule.drop * best).all()) else 0
        return self._below >= self.rule.patience


@dataclass(frozen=True)
class LeaveRule:
    """A slice is healthy, and may leave, once its largest M_t so far is below ``bounds``, in every
    modality.

    ``bounds``: (n, C), after each visited step: a share of the least that was seen by then on
    slices called unhealthy; at the last one nothing is left to save, so that whoever comes to it is
    judged by the verdict alone.
    """

    bounds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        modalities = {len(bound) for bound in self.bounds}
        if len(modalities) != 1 or 0 in modalities:
            raise ValueError("a rule to leave needs one bound a modality and visited step")
        if not all(0 <= number < np.inf for bound in self.bounds for number in bound):
            raise ValueError("a rule to leave needs finite bounds from 0")

    def leaves(self, best: Float64, step: int) -> bool:
        """Whether a slice leaves; ``best``: (C,), its largest M up to the ``step``-th one."""
        last = step == len(self.bounds) - 1
        return not last and bool((best < self.bounds[step]).all())

    def steps(self, M: Float64) -> NDArray[np.int64]:
        """How many visited steps are taken: (..., n, C) curves -> (...) in 1..n, which is n where a
        slice does not leave."""
        below, n = self._below(M), M.shape[-2]
        taken = np.where(below, 1 + np.arange(below.shape[-1]), n)
        return np.asarray(taken.min(axis=-1, initial=n), np.int64)

    def healthy(self, M: Float64) -> NDArray[np.bool_]:
        """Whether slices leave: (..., n, C) curves, whole or as far as they went -> (...)."""
        return np.asarray(self._below(M).any(axis=-1))

    def _below(self, M: Float64) -> NDArray[np.bool_]:
        bounds = np.array(self.bounds)[:-1][: M.shape[-2]]
        best = np.maximum.accumulate(M, axis=-2)[..., : len(bounds), :]
        return np.asarray((best < bounds).all(axis=-1))
