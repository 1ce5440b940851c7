"""A slice on its way: curves of the forward process -> map -> image-level decision -> mask."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from .backends.base import Backend, Recipe
from .backends.scheduler import Cancelled, never
from .bundle.bundle import Bundle
from .bundle.options import Plan
from .method.accumulator import SliceCurves
from .method.decision import SliceStatistics, alignment, cosine, map_peak, probability
from .method.process import Slice
from .method.threshold import otsu, threshold
from .refine.masks import cut
from .refine.through_plane import NeighbourWindow, SliceView, Window, window_mean, window_weights
from .results import SliceResult


@dataclass(frozen=True)
class _ProcessedSlice:
    """A slice by itself, after the forward process."""

    curves: SliceCurves
    cosine: float  # eq. 18
    alignment: float  # cosine between guidance and the unguided error
    view: SliceView


@dataclass(frozen=True)
class Pipeline:
    """Takes slices on a bundle's grid to results, by one plan on one backend."""

    bundle: Bundle
    plan: Plan
    backend: Backend
    seed: int  # of the noise

    def run(
        self,
        slices: Iterable[Slice | None],
        cancelled: Cancelled = never,
        on_processed: Callable[[], None] = lambda: None,
    ) -> Iterator[SliceResult]:
        """Results, each as soon as its slice and its neighbours are done.

        Parameters
        ----------
        slices : None stands for one that has not come yet
        cancelled : ends the run once it is true; what waits for its neighbours is dropped
        on_processed : called for every slice that has gone through the forward process
        """
        plan, scored = self.plan, self.bundle.manifest.scored_channels
        recipe = Recipe(plan.process, plan.calibration.w, scored, plan.rule, plan.stop, self.seed)
        window: NeighbourWindow[_ProcessedSlice] = NeighbourWindow(plan.refinement.neighbours_mm)
        flipped = (item and plan.refinement.flip(item) for item in window.announced(slices))
        for item, curves in self.backend.run(recipe, flipped, cancelled):
            on_processed()
            if cancelled():
                return
            for ready, neighbours in window.add(item, self._processed(item, curves)):
                yield self._result(ready, neighbours)
        if cancelled():
            return
        for ready, neighbours in window.ready():
            yield self._result(ready, neighbours)

    def _processed(self, item: Slice, curves: SliceCurves) -> _ProcessedSlice:
        """``item``: the slice as the network saw it."""
        scored, unflip = list(self.bundle.manifest.scored_channels), self.plan.refinement.unflip
        return _ProcessedSlice(
            curves,
            float(cosine(curves.MSE_h, curves.MSE_0)),
            float(alignment(curves.M, curves.MSE_h, curves.MSE_0)),
            SliceView(unflip(item, curves.H), unflip(item, item.x0[scored])),
        )

    def _result(self, item: Slice, window: Window[_ProcessedSlice]) -> SliceResult:
        """``window``: the slice itself, and its neighbours."""
        plan, calibration = self.plan, self.plan.calibration
        center, weights = window[0][1], window_weights(window)
        curves, views = center.curves, [(weight, near.view) for weight, near in window]
        H, smoothed = window_mean(views), plan.refinement.map_to_cut(views)
        mean_H = H.mean(axis=0)
        statistics = SliceStatistics(
            np.asarray(weights @ [near.cosine for _, near in window]),
            np.asarray(weights @ [near.alignment for _, near in window]),
            np.asarray(map_peak(smoothed)),
        )
        log_odds = float(calibration.logistic.log_odds(statistics))
        M_max = np.array(calibration.M_max)
        quantile = threshold(H, curves.M.max(axis=0), M_max, calibration.a, calibration.b)
        Q = quantile.Q if plan.Q is None else plan.Q
        if plan.Q is None and calibration.threshold_rule == "mean-with-otsu":
            Q = (Q + otsu(mean_H)) / 2
        return SliceResult(
            key=item.key,
            volume=item.volume,
            unhealthy=calibration.unhealthy(float(statistics.cosine), log_odds),
            cosine=float(statistics.cosine),
            alignment=float(statistics.alignment),
            map_peak=float(statistics.map_peak),
            log_odds=log_odds,
            probability=probability(log_odds),
            timesteps=plan.process.timesteps[: len(curves.M)],
            M=curves.M,
            MSE_h=curves.MSE_h,
            MSE_0=curves.MSE_0,
            t_e=curves.t_e,
            index=quantile.index,
            Q=Q,
            x0=center.view.x0,
            H=mean_H,
            smoothed=smoothed,
            mask=cut(smoothed, Q),
        )
