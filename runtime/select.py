"""What the forward process says about a slice: anomaly map, t_e and threshold."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .anomaly_map import MapRule, SnapshotMap, StoredMap
from .host_row import Step
from .stop import StopRule, Watch

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
_PAPER = MapRule()
# Where a map is cut: by Algorithm 1, or half-way from there to Otsu's threshold.
THRESHOLDS = ("algorithm-1", "half-way")
_BINS, _TINY = 256, 1e-9


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
        """See :class:`anofpdm.runtime.host_row.Digest`."""
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


@dataclass(frozen=True)
class Threshold:
    """``index``: (C,) int64 in 0..100, the place in Algorithm 1's grid of quantiles;
    ``per_modality``: (C,), where each modality's map would be cut; ``Q``: their mean."""

    index: NDArray[np.int64]
    per_modality: Float64

    @property
    def Q(self) -> float:
        """Where the mean of the modalities' maps is cut."""
        return float(self.per_modality.mean())


def threshold(H: Float32, M_best: Float64, M_max: Float64, a: float, b: float) -> Threshold:
    """Where to cut the anomaly map (Algorithm 1).

    Parameters
    ----------
    H : (C, H, W) float32, unfiltered
    M_best, M_max : (C,), the slice's largest M and the calibrated one
    a, b : the smallest and largest quantile, 0 <= a <= b <= 1
    """
    grid = np.linspace(b, a, 101)
    share = np.clip(M_best / M_max, 0.0, 1.0)
    index = np.rint(np.round(share, 2) * 100).astype(np.int64)
    cuts = np.array([np.quantile(h, grid[i]) for h, i in zip(H, index, strict=True)], np.float64)
    return Threshold(index, cuts)


def otsu(H: Float32) -> float:
    """The threshold that splits the values of a map into the two classes of largest variance
    between them (Otsu 1979), among the middles of 256 equal steps from the least to the largest.

    Not in the paper, whose quantiles go by the slice's largest M alone: this one goes by the map.
    Of a map that is the same everywhere, its value.
    """
    values = np.asarray(H, np.float64)  # in float32 256 steps may not fit between two values
    low, high = float(values.min()), float(values.max())
    if high - low <= _TINY * max(abs(low), abs(high)):
        return low
    return otsu_of_histogram(*np.histogram(values, bins=_BINS))


def otsu_of_histogram(counts: NDArray[np.int64], edges: Float64) -> float:
    """Otsu's threshold (1979): the middle of the bin that splits a histogram into the two classes
    of largest variance between them.

    Parameters
    ----------
    counts : (n,), values in each bin
    edges : (n + 1,), where the bins begin and end
    """
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    sums = np.cumsum(counts * middles)
    mean_below = sums[:-1] / np.maximum(below, 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(middles[np.argmax(below * above * np.square(mean_below - mean_above))])
