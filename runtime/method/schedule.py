"""The noise schedule and the coefficients of the forward process (paper, eqs. 2, 4, 7, 10)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
SPACINGS = ("even", "log-snr")
_MAX_T = 4000


@dataclass(frozen=True)
class Schedule:
    """Linear noise schedule: beta_t evenly spaced from ``beta_first`` to ``beta_last``, t = 1..T.

    Timesteps here are the paper's, 1-based; the network is fed ``t - 1``.
    """

    T: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02

    def __post_init__(self) -> None:
        if not isinstance(self.T, int) or not 1 <= self.T <= _MAX_T:
            raise ValueError(f"a schedule needs T of 1 to {_MAX_T}, not {self.T!r}")
        if not 0 < self.beta_first <= self.beta_last < 1:
            raise ValueError(f"a schedule needs 0 < beta_first <= beta_last < 1, not {self}")

    @cached_property
    def abar(self) -> Float64:
        """(T,) float64, cumulative product of 1 - beta; ``abar[t - 1]`` belongs to timestep t."""
        betas = np.linspace(self.beta_first, self.beta_last, self.T)
        return np.asarray(np.cumprod(1.0 - betas), np.float64)

    def visited(self, L: int, stride: int, spacing: str = "even") -> NDArray[np.int64]:
        """The timesteps that are visited: (n,) int64, ascending, from 1.

        Parameters
        ----------
        L : how far the process goes, 1..T
        stride : from 1; decides the number of timesteps
        spacing : ``even``: 1, 1 + stride, 1 + 2 stride, ... up to and including L; ``log-snr``: as
            many, from 1 to L, evenly spaced in log(abar / (1 - abar)), duplicates dropped
        """
        if not 1 <= L <= self.T or stride < 1:
            raise ValueError(
                f"L must lie in 1..{self.T} and stride be at least 1, not L={L}, stride={stride}"
            )
        even = np.arange(1, L + 1, stride, dtype=np.int64)
        if spacing == "even":
            return even
        if spacing != "log-snr":
            raise ValueError(f"spacing must be even or log-snr, not {spacing!r}")
        log_snr = np.log(self.abar[:L] / (1 - self.abar[:L]))
        wanted = np.linspace(log_snr[0], log_snr[-1], len(even))
        return np.unique(np.abs(log_snr[:, None] - wanted).argmin(axis=0) + 1)
