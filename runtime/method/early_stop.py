"""Early stop (not in the paper): a slice stops before L once the peak of M_t is certain."""

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
        index = np.arange(n)
        last_above = np.maximum.accumulate(np.where(below, -1, index), axis=-1)
        certain = index - last_above >= self.patience
        return np.asarray(np.where(certain.any(axis=-1), certain.argmax(axis=-1) + 1, n), np.int64)


@dataclass
class StopWatch:
    """A stop rule at work on one slice, step by step."""

    rule: StopRule
    _below: int = field(default=0)

    def certain(self, M: Float64, best: Float64) -> bool:
        """Whether the slice may stop; ``M``: (C,) at this step, ``best``: (C,) so far."""
        self._below = self._below + 1 if bool((M < self.rule.drop * best).all()) else 0
        return self._below >= self.rule.patience
