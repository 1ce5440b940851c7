"""What is kept of a slice's steps: M_t, both errors, t_e and the anomaly map H."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .anomaly_map import MapRule, SnapshotMap, StoredMap
from .early_stop import StopRule, StopWatch
from .step import Step

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
_PAPER = MapRule()


@dataclass(frozen=True)
class SliceCurves:
    """What the forward process yields for a slice: n visited timesteps, C scored modalities."""

    M: Float64  # (n, C) divergence of the two predictions (eq. 12)
    MSE_h: Float64  # (n, C) error of the healthy-guided prediction (eq. 14)
    MSE_0: Float64  # (n, C) error of the unguided prediction (eq. 16)
    t_e: NDArray[np.int64]  # (C,) timestep of the largest M (eq. 21)
    H: Float32  # (C, H, W) anomaly map (eq. 20, or what the MapRule says)


@dataclass
class AnomalyAccumulator:
    """Accumulates one slice for one guidance strength; memory is constant but for the curves.

    All arrays are over the scored modalities.
    """

    w: float  # guidance strength
    scored: tuple[int, ...]  # positions of the modalities that count
    rule: MapRule = _PAPER  # how the map is made
    stop: StopRule | None = None  # when the slice may stop before L
    M: list[Float64] = field(default_factory=list)  # (C,) a visited step, eq. 12
    MSE_h: list[Float64] = field(default_factory=list)  # (C,) a visited step, eq. 14
    MSE_0: list[Float64] = field(default_factory=list)  # (C,) a visited step, eq. 16
    t_e: NDArray[np.int64] = field(init=False)  # (C,) timestep of the largest M so far
    _best: Float64 = field(init=False)  # (C,) the largest M so far
    _map: SnapshotMap | StoredMap = field(init=False)
    _watch: StopWatch | None = field(init=False)

    def __post_init__(self) -> None:
        self.t_e = np.zeros(len(self.scored), np.int64)
        self._best = np.full(len(self.scored), -np.inf)
        self._map = self.rule.new_map()
        self._watch = StopWatch(self.stop) if self.stop else None

    def add(self, step: Step, UGP: Float32) -> bool:
        """Take in a step and its unguided prediction; returns whether the slice may stop."""
        scored = list(self.scored)
        x0, UGP, HGP = step.x0[scored], UGP[scored], step.HGP(self.w)[scored]
        M = mean_square(HGP - UGP)  # eq. 12
        S = _PAPER.sub_anomaly(step, HGP, UGP, x0, self.w)  # eq. 19
        self.M.append(M)
        self.MSE_h.append(S.mean(axis=(1, 2), dtype=np.float64))  # eq. 14
        self.MSE_0.append(mean_square(UGP - x0))  # eq. 16
        higher = M > self._best
        self._best[higher] = M[higher]
        self.t_e[higher] = step.t  # eq. 21
        if self.rule.sub_map != _PAPER.sub_map:
            S = self.rule.sub_anomaly(step, HGP, UGP, x0, self.w)
        self._map.add(step.t, S, higher)
        return self._watch is not None and self._watch.certain(M, self._best)

    @property
    def H(self) -> Float32:
        """The anomaly map so far, (C, H, W)."""
        return self._map.H(self.t_e)

    def curves(self) -> SliceCurves:
        """The result, once the last step has been added."""
        M, MSE_h, MSE_0 = np.array(self.M), np.array(self.MSE_h), np.array(self.MSE_0)
        return SliceCurves(M, MSE_h, MSE_0, self.t_e, self.H)


def mean_square(difference: Float32) -> Float64:
    """Mean over the pixels of the square: (C, H, W) -> (C,) float64."""
    return np.asarray(np.square(difference).mean(axis=(1, 2), dtype=np.float64))
