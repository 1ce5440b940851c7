"""From slices to results: what the forward process finds, the verdict, the threshold, the mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .backend import Backend, Recipe
from .forward import Cancelled, Slice
from .guided import guided_filter
from .neighbours import Gathering, shown, turned
from .postprocess import cut, smooth
from .results import SliceResult
from .select import Finding, otsu, threshold
from .setup import Resolved
from .verdict import Statistics, probability


@dataclass(frozen=True)
class _Alone:
    """What a slice says by itself; ``H``, ``x0``: (C, size, size) float32, its anomaly maps and
    scored modalities, the way round it came; ``smoothed``: (size, size) float32, its smoothed map.
    """

    found: Finding
    statistics: Statistics
    log_odds: float
    left: bool
    H: NDArray[np.float32]
    x0: NDArray[np.float32]
    smoothed: NDArray[np.float32]


@dataclass(frozen=True)
class Analysis:
    """How slices are judged and cut by a calibration.

    ``scored``: the modalities that count, as positions; ``seed``: of the noise; ``to_the_end``:
    whether slices that are certain to be healthy go on.
    """

    setup: Resolved
    scored: tuple[int, ...]
    seed: int
    to_the_end: bool

    def run(
        self,
        backend: Backend,
        slices: Iterable[Slice | None],
        cancelled: Cancelled,
        done: Callable[[], None],
    ) -> Iterator[SliceResult]:
        """Results, each as soon as its slice and its neighbours are done.

        ``done``: called for every slice that has gone through the process.
        """
        setup, held = self.setup, self.setup.calibration
        leave = None if self.to_the_end else setup.leave
        recipe = Recipe(
            setup.process, held.w, self.scored, setup.rule, setup.stop, leave, self.seed
        )
        gathering: Gathering[_Alone] = Gathering(held.neighbours_mm)
        taken = gathering.announced(slices)
        views = (item and shown(item, held.mirrored) for item in taken)
        for item, found in backend.find(recipe, views, cancelled):
            done()
            if cancelled():
                return
            for one, beside in gathering.add(item, self._alone(item, found)):
                yield self._result(one, beside)
        if cancelled():  # what waits has not seen all its neighbours
            return
        for one, beside in gathering.ready():
            yield self._result(one, beside)

    def _alone(self, item: Slice, found: Finding) -> _Alone:
        leave, calibration = self.setup.leave, self.setup.calibration
        H, x0 = found.H, item.x0[list(self.scored)]
        if turned(item, calibration.mirrored):
            H, x0 = H[:, ::-1], x0[:, ::-1]
        left = leave is not None and bool(leave.healthy(found.M))
        smoothed = smooth(H.mean(axis=0))
        statistics = found.statistics(smoothed)
        log_odds = float(calibration.logistic.log_odds(statistics))
        return _Alone(found, statistics, log_odds, left, H, x0, smoothed)

    def _result(self, item: Slice, around: Sequence[tuple[float, _Alone]]) -> SliceResult:
        """``around``: the slice itself, and its neighbours; of these, slices that left as healthy
        do not count: what they say depends on where they left."""
        setup, calibration = self.setup, self.setup.calibration
        own = around[0][1]
        counted = [pair for i, pair in enumerate(around) if i == 0 or not pair[1].left]
        weights = np.array([weight for weight, _ in counted])
        weights /= weights.sum()
        cosine = float(weights @ [one.statistics.cosine for _, one in counted])
        log_odds = float(weights @ [one.log_odds for _, one in counted])
        H = own.H
        if len(counted) > 1:
            H = np.zeros_like(own.H)
            for weight, (_, one) in zip(weights, counted, strict=True):
                H += np.float32(weight) * one.H
        found, mean_H = own.found, H.mean(axis=0)
        if setup.guided_pixels:
            maps = np.stack([one.smoothed for _, one in counted])
            slices = np.stack([one.x0 for _, one in counted])
            smoothed = guided_filter(maps, slices, weights, setup.guided_pixels)
        else:
            smoothed = smooth(mean_H) if len(counted) > 1 else own.smoothed
        M_max = np.array(calibration.M_max)
        cuts = threshold(H, found.M.max(axis=0), M_max, calibration.a, calibration.b)
        Q = cuts.Q if setup.Q is None else setup.Q
        if setup.Q is None and calibration.threshold == "half-way":
            Q = (Q + otsu(mean_H)) / 2
        return SliceResult(
            key=item.key,
            volume=item.volume,
            unhealthy=calibration.unhealthy(cosine, log_odds) and not own.left,
            left=own.left,
            cosine=cosine,
            alignment=float(own.statistics.alignment),
            map_peak=float(own.statistics.map_peak),
            log_odds=log_odds,
            probability=0.0 if own.left else probability(log_odds),
            timesteps=setup.process.timesteps[: len(found.M)],
            M=found.M,
            MSE_h=found.MSE_h,
            MSE_0=found.MSE_0,
            t_e=found.t_e,
            index=cuts.index,
            Q=Q,
            x0=own.x0,
            H=mean_H,
            smoothed=smoothed,
            mask=cut(smoothed, Q),
        )
