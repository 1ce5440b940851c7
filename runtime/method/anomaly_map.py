"""From the steps of a slice to its anomaly map H (paper, section 4.3 and appendix D)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .step import Step

Float32 = NDArray[np.float32]
ANOMALY_MAPS = ("aggregate", "last")
SUB_MAPS = ("residual", "gradient", "gradient-normalised")


@dataclass(frozen=True)
class MapRule:
    """How H is made. The defaults are the paper's best set-up; the rest is for ablations.

    Sub-anomaly maps: ``residual``, S_t = (HGP - x0)^2 (eq. 19); ``gradient``, (HGP - UGP)^2, whose
    mean is M_t; ``gradient-normalised``, the same divided by B_t^2 (1 + w)^2 with
    B_t = (1 - abar_t) / sqrt(abar_t): without clipping, the squared gradient of
    log p(healthy | x_t) that guidance implies (appendix D).
    """

    anomaly_map: str = "aggregate"  # mean of the sub-maps up to t_e (eq. 20); last: S_te
    sub_map: str = "residual"  # one of SUB_MAPS
    t_e_ratio: float = 1.0  # H at the last visited timestep up to this multiple of t_e

    def __post_init__(self) -> None:
        if self.anomaly_map not in ANOMALY_MAPS:
            raise ValueError(f"anomaly_map must be aggregate or last, not {self.anomaly_map!r}")
        if self.sub_map not in SUB_MAPS:
            raise ValueError(f"sub_map must be one of {', '.join(SUB_MAPS)}, not {self.sub_map!r}")
        if not 0 < self.t_e_ratio < np.inf:
            raise ValueError(f"t_e_ratio must be positive, not {self.t_e_ratio}")

    def sub_anomaly(self, step: Step, HGP: Float32, UGP: Float32, x0: Float32, w: float) -> Float32:
        """The sub-anomaly map of a step; all (C, H, W)."""
        if self.sub_map == "residual":
            return np.asarray(np.square(HGP - x0))  # eq. 19
        gradient = np.square(HGP - UGP)
        return np.asarray(gradient / np.float32(self.norm(step.abar, w)), np.float32)

    def norm(self, abar: float, w: float) -> float:
        """What the squared difference is divided by in a gradient map at a timestep."""
        if self.sub_map != "gradient-normalised":
            return 1.0
        B_t = (1 - abar) / np.sqrt(abar)
        return float((B_t * (1 + w)) ** 2)

    def new_map(self) -> "SnapshotMap | StoredMap":
        """An empty map that is made by this rule."""
        return SnapshotMap(self) if self.t_e_ratio == 1 else StoredMap(self)


class SnapshotMap:
    """H at the largest M so far: a running sum and a copy of it, whatever the number of steps."""

    def __init__(self, rule: MapRule) -> None:
        self._aggregates = rule.anomaly_map == "aggregate"
        self._sum: Float32 | None = None
        self._count = 0

    def add(self, t: int, S: Float32, higher: NDArray[np.bool_]) -> None:
        """Take in the sub-anomaly map of timestep t; ``higher``: (C,), where M is a maximum."""
        if self._sum is None:
            self._sum, self._H = np.zeros_like(S), np.zeros_like(S)
        self._sum += S
        self._count += 1
        if self._aggregates:
            self._H[higher] = self._sum[higher] / np.float32(self._count)  # eq. 20
        else:
            self._H[higher] = S[higher]

    def H(self, t_e: NDArray[np.int64]) -> Float32:
        """(C, H, W); ``t_e`` is where ``higher`` was last true."""
        return self._H


class StoredMap:
    """H at a multiple of t_e, which is known only at the end: keeps the map of every step."""

    def __init__(self, rule: MapRule) -> None:
        self._rule = rule
        self._t: list[int] = []
        self._S: list[Float32] = []

    def add(self, t: int, S: Float32, higher: NDArray[np.bool_]) -> None:
        """Take in the map S_t, (C, H, W) float32; where M is ``higher`` does not matter yet."""
        self._t.append(t)
        self._S.append(S)

    def H(self, t_e: NDArray[np.int64]) -> Float32:
        """(C, H, W); ``t_e``: (C,)."""
        t, S = np.array(self._t), np.array(self._S)
        # A multiple that is a visited timestep may come out a rounding error below it.
        wanted = self._rule.t_e_ratio * t_e * (1 + 1e-9)
        ends = np.searchsorted(t, wanted, side="right").clip(1)
        if self._rule.anomaly_map == "last":
            return np.stack([S[end - 1, c] for c, end in enumerate(ends)])
        return np.stack([S[:end, c].mean(axis=0) for c, end in enumerate(ends)])
