"""One sweep over labelled slices that serves every candidate guidance strength.

The encoding does not depend on w, so one pair of network evaluations a step yields the curves of
all candidates; and a sweep up to L begins with the sweep up to any smaller L.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.backends.base import Denoiser
from anofpdm.runtime.backends.cpu.numpy_loop import NumpySlots
from anofpdm.runtime.backends.scheduler import run
from anofpdm.runtime.method.accumulator import AnomalyAccumulator
from anofpdm.runtime.method.anomaly_map import MapRule
from anofpdm.runtime.method.decision import SliceStatistics, alignment, cosine, map_peak
from anofpdm.runtime.method.process import Process, Slice
from anofpdm.runtime.method.step import Step
from anofpdm.runtime.refine.through_plane import NeighbourWindow, Refinement, SliceView, Window
from anofpdm.train.dataset import SliceSet

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
_ALONE = Refinement()


@dataclass(frozen=True)
class Curves:
    """What calibration looks at, for N slices, K candidates, n visited steps, C scored modalities.

    ``M``, ``MSE_h``: (N, K, n, C) float64; ``MSE_0``: (N, n, C); ``map_peak``: (N, K), that of the
    map that is cut at the end; ``timesteps``: (n,), ``w``: (K,).
    """

    w: tuple[float, ...]
    timesteps: NDArray[np.int64]
    M: Float64
    MSE_h: Float64
    MSE_0: Float64
    map_peak: Float64

    def statistics(self, k: int, steps: NDArray[np.int64] | None = None) -> SliceStatistics:
        """What decisions go by, of each slice alone but for the map's peak: (N,) each.

        ``k``: of which guidance strength; ``steps``: (N,) in 1..n, after how many of them each
        slice is left (default: all). The map's peak is that of the end all the same: it is the same
        map where t_e is kept.
        """
        M, MSE_h, MSE_0 = self.M[:, k], self.MSE_h[:, k], self.MSE_0
        if steps is not None:
            taken = (np.arange(M.shape[1]) < steps[:, None])[..., None]
            M, MSE_h, MSE_0 = (np.where(taken, curve, 0) for curve in (M, MSE_h, MSE_0))
        return SliceStatistics(
            cosine(MSE_h, MSE_0), alignment(M, MSE_h, MSE_0), self.map_peak[:, k]
        )

    def take(self, slices: NDArray[np.bool_]) -> Curves:
        """Of these slices alone."""
        return Curves(
            self.w,
            self.timesteps,
            self.M[slices],
            self.MSE_h[slices],
            self.MSE_0[slices],
            self.map_peak[slices],
        )


class _SweepAccumulator:
    """Records one slice for several w: what the runtime computes for each.

    ``ends``: the timesteps after which its maps are kept, in ``maps``: by end, by w, (C, H, W).
    """

    def __init__(
        self, w: tuple[float, ...], scored: tuple[int, ...], rule: MapRule, ends: Sequence[int]
    ) -> None:
        self.by_w = [AnomalyAccumulator(strength, scored, rule) for strength in w]
        self.maps: list[list[Float32]] = []
        self._ends = ends

    def add(self, step: Step, UGP: Float32) -> bool:
        """Never lets a slice go: what a stopping rule would do is read off the curves."""
        for accumulator in self.by_w:
            accumulator.add(step, UGP)
        if step.t in self._ends:
            self.maps.append([accumulator.H.copy() for accumulator in self.by_w])
        return False


def sweep(
    slices: SliceSet,
    denoiser: Denoiser,
    process: Process,
    w: tuple[float, ...],
    scored: tuple[int, ...],
    *,
    anomaly_map: str = "aggregate",
    refinement: Refinement = _ALONE,
    seed: int = 0,
    slots: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Curves:
    """Run the forward process over all slices and record the curves.

    ``anomaly_map``: which map, see :class:`anofpdm.runtime.method.anomaly_map.MapRule`;
    ``refinement``: what makes the map that is cut.
    """
    return sweeps(
        slices,
        denoiser,
        process,
        (process.L,),
        w,
        scored,
        anomaly_map=anomaly_map,
        refinement=refinement,
        seed=seed,
        slots=slots,
        progress=progress,
    )[process.L]


def sweeps(
    slices: SliceSet,
    denoiser: Denoiser,
    process: Process,
    lengths: Sequence[int],
    w: tuple[float, ...],
    scored: tuple[int, ...],
    *,
    anomaly_map: str = "aggregate",
    refinement: Refinement = _ALONE,
    seed: int = 0,
    slots: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, Curves]:
    """The curves of every L in ``lengths``: of one sweep to the largest, but where timesteps are
    spaced by log SNR, which visits others for every L."""
    wanted = sorted(set(lengths))
    parts = [wanted] if process.spacing == "even" else [[L] for L in wanted]
    curves_by_L: dict[int, Curves] = {}
    for i, part in enumerate(parts):
        whole = replace(process, L=part[-1])
        one = _Sweep(whole, part, w, scored, MapRule(anomaly_map), refinement, seed, slots)
        curves_by_L |= one.run(slices, denoiser, partial(_progress_of, progress, i, len(parts)))
    return curves_by_L


def _progress_of(
    progress: Callable[[int, int], None], part: int, parts: int, done: int, total: int
) -> None:
    progress(part * total + done, parts * total)


# Of a slice, its views at every end, for every w.
_Views = list[list[SliceView]]


@dataclass(frozen=True)
class _Sweep:
    """One sweep, that may be cut at every one of ``lengths``; these ascend, up to that of the
    process."""

    process: Process
    lengths: Sequence[int]
    w: tuple[float, ...]
    scored: tuple[int, ...]
    rule: MapRule
    refinement: Refinement
    seed: int
    slots: int

    def run(
        self, slices: SliceSet, denoiser: Denoiser, progress: Callable[[int, int], None]
    ) -> dict[int, Curves]:
        """The curves by L."""
        t = self.process.timesteps
        steps = [int((t <= L).sum()) for L in self.lengths]
        ends = sorted({int(t[n - 1]) for n in steps})  # lengths may end at the same step
        slots = NumpySlots(
            self.process,
            denoiser,
            lambda: _SweepAccumulator(self.w, self.scored, self.rule, ends),
            seed=self.seed,
            slots=self.slots,
        )
        window: NeighbourWindow[_Views] = NeighbourWindow(self.refinement.neighbours_mm)
        curves: dict[int, tuple[Float64, ...]] = {}
        peaks: dict[int, list[list[float]]] = {}
        for item, accumulator in run(slots, self._flipped(window, slices)):
            curves[item.key] = (
                np.array([by.M for by in accumulator.by_w]),
                np.array([by.MSE_h for by in accumulator.by_w]),
                np.array(accumulator.by_w[0].MSE_0),
            )
            x0 = self.refinement.unflip(item, item.x0[list(self.scored)])
            views = [
                [SliceView(self.refinement.unflip(item, H), x0) for H in by_w]
                for by_w in accumulator.maps
            ]
            peaks |= self._peaks(window.add(item, views))
            progress(len(curves), len(slices))
        peaks |= self._peaks(window.ready())
        M, MSE_h, MSE_0 = (
            np.array(column)
            for column in zip(*(curves[i] for i in range(len(slices))), strict=True)
        )
        curves_by_L = np.array([peaks[i] for i in range(len(slices))])
        at = [ends.index(int(t[n - 1])) for n in steps]
        return {
            L: Curves(
                self.w, t[:n], M[:, :, :n], MSE_h[:, :, :n], MSE_0[:, :n], curves_by_L[:, end]
            )
            for L, n, end in zip(self.lengths, steps, at, strict=True)
        }

    def _flipped(self, window: NeighbourWindow[_Views], slices: SliceSet) -> Iterator[Slice]:
        for item in window.announced(slices.slices()):
            assert item is not None
            yield self.refinement.flip(item)

    def _peaks(
        self, complete: Iterable[tuple[Slice, Window[_Views]]]
    ) -> dict[int, list[list[float]]]:
        """Of slices whose neighbours are done, by key: the peaks of the maps that are cut at every
        end, for every w."""
        return {
            item.key: [
                [
                    map_peak(
                        self.refinement.map_to_cut(
                            [(weight, maps[end][k]) for weight, maps in window]
                        )
                    )
                    for k in range(len(self.w))
                ]
                for end in range(len(window[0][1]))
            ]
            for item, window in complete
        }
