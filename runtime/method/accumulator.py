"""What is kept of a slice's steps: M_t, both errors, t_e and the anomaly map."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .anomaly_map import MapRule, SnapshotMap, StoredMap
from .early_stop import StopRule, Watch
from .step import Step

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
_PAPER = MapRule()


@dataclass(frozen=True)
class Finding:
    """What the process found on a slice; arrays are over the scored modalities.

    ``M``, ``MSE_h``, ``MSE_0``: (n, C) float64 at the n timesteps that were visited (eqs. 12, 14,
    16); ``t_e``: (C,) int64 (eq. 21); ``H``: (C, H, W) float32, the anomaly map.
    """

    M: Float64
    MSE_h: Float64
    MSE_0: Float64
    t_e: NDArray[np.int64]
    H: Float32


@dataclass
class AnomalyDigest:
    """What is kept of one slice for one guidance strength; memory is constant but for the curves.

    ``scored``: the modalities that count, as positions; all arrays below are over these.
    ``rule``: how the map is made; ``stop``: when the slice may leave before L, because t_e is
    certain.

    ``M``, ``MSE_h``, ``MSE_0``: one (C,) float64 a visited step, eqs. 12, 14, 16.
    ``t_e``: (C,) int64, the timestep of the largest M (eq. 21).
    """

    w: float
    scored: tuple[int, ...]
    rule: MapRule = _PAPER
    stop: StopRule | None = None
    M: list[Float64] = field(default_factory=list)
    MSE_h: list[Float64] = field(default_factory=list)
    MSE_0: list[Float64] = field(default_factory=list)
    t_e: NDArray[np.int64] = field(init=False)
    _best: Float64 = field(init=False)
    _map: SnapshotMap | StoredMap = field(init=False)
    _watch: Watch | None = field(init=False)

    def __post_init__(self) -> None:
        self.t_e = np.zeros(len(self.scored), np.int64)
        self._best = np.full(len(self.scored), -np.inf)
        self._map = self.rule.new_map()
        self._watch = Watch(self.stop) if self.stop else None

    def add(self, step: Step, UGP: Float32) -> bool:
        """See :class:`anofpdm.runtime.backends.cpu.numpy_loop.Digest`."""
        scored = list(self.scored)
        x0, UGP, HGP = step.x0[scored], UGP[scored], step.HGP(self.w)[scored]
        M = mean_square(HGP - UGP)  # eq. 12
        S = _PAPER.sub_anomaly(step, HGP, UGP, x0, self.w)
        self.M.append(M)
        self.MSE_h.append(S.mean(axis=(1, 2), dtype=np.float64))  # eq. 14
        self.MSE_0.append(mean_square(UGP - x0))  # eq. 16
        higher = M > self._best
        self._best[higher] = M[higher]
        self.t_e[higher] = step.t  # eq. 21
        same = self.rule.sub_map == _PAPER.sub_map
        own = S if same else self.rule.sub_anomaly(step, HGP, UGP, x0, self.w)
        self._map.add(step.t, own, higher)
        return self._watch is not None and self._watch.certain(M, self._best)

    @property
    def H(self) -> Float32:
        """The anomaly map, made by ``rule``: (C, H, W)."""
        return self._map.H(self.t_e)

    def finding(self) -> Finding:
        """What was found, once the last step has been added."""
        M, MSE_h, MSE_0 = np.array(self.M), np.array(self.MSE_h), np.array(self.MSE_0)
        return Finding(M, MSE_h, MSE_0, self.t_e, self.H)


def mean_square(difference: Float32) -> Float64:
    """Mean over the pixels of the square: (C, H, W) -> (C,) float64."""
    return np.asarray(np.square(difference).mean(axis=(1, 2), dtype=np.float64))
