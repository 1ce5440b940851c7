"""From slices to results: what the forward process finds, the verdict, the threshold, the mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .backends.base import Backend, Recipe
from .backends.scheduler import Cancelled
from .bundle.options import Resolved
from .method.accumulator import Finding
from .method.decision import Statistics, alignment, cosine, map_peak, probability
from .method.process import Slice
from .method.threshold import otsu, threshold
from .refine.masks import cut
from .refine.through_plane import Gathering, View, counts, mean_map, shown
from .results import SliceResult


@dataclass(frozen=True)
class _Alone:
    """What a slice says by itself."""

    found: Finding
    cosine: float
    alignment: float
    view: View


@dataclass(frozen=True)
class Analysis:
    """How slices are judged and cut by a calibration.

    ``scored``: the modalities that count, as positions; ``seed``: of the noise.
    """

    setup: Resolved
    scored: tuple[int, ...]
    seed: int

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
        recipe = Recipe(setup.process, held.w, self.scored, setup.rule, setup.stop, self.seed)
        gathering: Gathering[_Alone] = Gathering(setup.ensemble.neighbours_mm)
        taken = gathering.announced(slices)
        views = (item and shown(item, setup.ensemble.mirrored) for item in taken)
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
        """``item``: the slice as it was shown."""
        back = self.setup.ensemble.turned_back
        return _Alone(
            found,
            float(cosine(found.MSE_h, found.MSE_0)),
            float(alignment(found.M, found.MSE_h, found.MSE_0)),
            View(back(item, found.H), back(item, item.x0[list(self.scored)])),
        )

    def _result(self, item: Slice, around: Sequence[tuple[float, _Alone]]) -> SliceResult:
        """``around``: the slice itself, and its neighbours."""
        setup, calibration = self.setup, self.setup.calibration
        own, found, weights = around[0][1], around[0][1].found, counts(around)
        views = [(weight, one.view) for weight, one in around]
        H, smoothed = mean_map(views), setup.ensemble.map_to_cut(views)
        mean_H = H.mean(axis=0)
        said = Statistics(
            np.asarray(weights @ [one.cosine for _, one in around]),
            np.asarray(weights @ [one.alignment for _, one in around]),
            np.asarray(map_peak(smoothed)),
        )
        log_odds = float(calibration.logistic.log_odds(said))
        M_max = np.array(calibration.M_max)
        cuts = threshold(H, found.M.max(axis=0), M_max, calibration.a, calibration.b)
        Q = cuts.Q if setup.Q is None else setup.Q
        if setup.Q is None and calibration.threshold == "half-way":
            Q = (Q + otsu(mean_H)) / 2
        return SliceResult(
            key=item.key,
            volume=item.volume,
            unhealthy=calibration.unhealthy(float(said.cosine), log_odds),
            cosine=float(said.cosine),
            alignment=float(said.alignment),
            map_peak=float(said.map_peak),
            log_odds=log_odds,
            probability=probability(log_odds),
            timesteps=setup.process.timesteps[: len(found.M)],
            M=found.M,
            MSE_h=found.MSE_h,
            MSE_0=found.MSE_0,
            t_e=found.t_e,
            index=cuts.index,
            Q=Q,
            x0=own.view.x0,
            H=mean_H,
            smoothed=smoothed,
            mask=cut(smoothed, Q),
        )
