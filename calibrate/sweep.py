"""One sweep over labelled slices that serves every candidate guidance strength.

The encoding does not depend on w, so one pair of network evaluations a step yields the curves of
all candidates; and a sweep up to L begins with the sweep up to any smaller L.
"""

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
_NO_REFINEMENT = Refinement()


@dataclass(frozen=True)
class Curves:
    """The curves of N slices, for K guidance strengths, n visited steps, C scored modalities."""

    w: tuple[float, ...]  # (K,) guidance strengths
    timesteps: NDArray[np.int64]  # (n,) visited timesteps, ascending
    M: Float64  # (N, K, n, C) divergence of the two predictions (eq. 12)
    MSE_h: Float64  # (N, K, n, C) error of the healthy-guided prediction (eq. 14)
    MSE_0: Float64  # (N, n, C) error of the unguided prediction (eq. 16)
    map_peak: Float64  # (N, K) ln of the largest value of the map that is cut at the end

    def statistics(self, k: int, steps: NDArray[np.int64] | None = None) -> SliceStatistics:
        """The statistics of image-level decisions, of each slice without its neighbours: (N,) each.

        Only the map's peak is that of the map of the whole window.

        Parameters
        ----------
        k : index of the guidance strength
        steps : (N,) in 1..n, the number of steps after which each slice stops; None for all. The
            map's peak is still that of the full sweep, which is the same map where t_e is kept.
        """
        M, MSE_h, MSE_0 = self.M[:, k], self.MSE_h[:, k], self.MSE_0
        if steps is not None:
            visited = (np.arange(M.shape[1]) < steps[:, None])[..., None]
            M, MSE_h, MSE_0 = (np.where(visited, curve, 0) for curve in (M, MSE_h, MSE_0))
        return SliceStatistics(
            cosine(MSE_h, MSE_0), alignment(M, MSE_h, MSE_0), self.map_peak[:, k]
        )

    def take(self, slices: NDArray[np.bool_]) -> "Curves":
        """The curves of the slices where ``slices``, (N,), is true."""
        return Curves(
            self.w,
            self.timesteps,
            self.M[slices],
            self.MSE_h[slices],
            self.MSE_0[slices],
            self.map_peak[slices],
        )


class _SweepAccumulator:
    """Accumulates one slice for several guidance strengths, each as the runtime does.

    Parameters
    ----------
    ends : timesteps after which the maps are copied to ``maps``: by end, by w, (C, H, W)
    """

    def __init__(
        self, w: tuple[float, ...], scored: tuple[int, ...], rule: MapRule, ends: Sequence[int]
    ) -> None:
        self.by_w = [AnomalyAccumulator(strength, scored, rule) for strength in w]
        self.maps: list[list[Float32]] = []
        self._ends = ends

    def add(self, step: Step, UGP: Float32) -> bool:
        """Add a step; False, since no slice stops: stopping rules are applied to the curves."""
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
    refinement: Refinement = _NO_REFINEMENT,
    seed: int = 0,
    slots: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Curves:
    """Run the forward process over all slices and record the curves.

    Parameters
    ----------
    w : guidance strengths
    scored : positions of the modalities that the anomaly map is made of
    anomaly_map : ``aggregate`` or ``last``, see
        :class:`anofpdm.runtime.method.anomaly_map.MapRule`
    refinement : how the map that is cut is made of the anomaly maps
    seed : of the noise
    slots : slices in the network's batch
    progress : called with the slices done and their total
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
    refinement: Refinement = _NO_REFINEMENT,
    seed: int = 0,
    slots: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, Curves]:
    """The curves of every L in ``lengths``; other parameters as for :func:`sweep`.

    One sweep to the largest L serves all, except where timesteps are spaced by log SNR: there every
    L visits other timesteps and needs its sweep.
    """
    ascending = sorted(set(lengths))
    parts = [ascending] if process.spacing == "even" else [[L] for L in ascending]
    curves_by_L: dict[int, Curves] = {}
    for i, part in enumerate(parts):
        longest = replace(process, L=part[-1])
        shared = _Sweep(longest, part, w, scored, MapRule(anomaly_map), refinement, seed, slots)
        curves_by_L |= shared.run(slices, denoiser, partial(_progress_of, progress, i, len(parts)))
    return curves_by_L


def _progress_of(
    progress: Callable[[int, int], None], part: int, parts: int, done: int, total: int
) -> None:
    progress(part * total + done, parts * total)


# The views of one slice: by end of the sweep, by w.
_Views = list[list[SliceView]]


@dataclass(frozen=True)
class _Sweep:
    """One sweep that yields the curves of several lengths."""

    process: Process  # to the largest of the lengths
    lengths: Sequence[int]  # every L whose curves are recorded, ascending
    w: tuple[float, ...]  # (K,) guidance strengths
    scored: tuple[int, ...]  # positions of the modalities that the anomaly map is made of
    rule: MapRule  # how the anomaly map is made
    refinement: Refinement  # how the map that is cut is made of anomaly maps
    seed: int  # of the noise
    slots: int  # slices in the network's batch

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
        map_peaks = np.array([peaks[i] for i in range(len(slices))])
        at = [ends.index(int(t[n - 1])) for n in steps]
        return {
            L: Curves(self.w, t[:n], M[:, :, :n], MSE_h[:, :, :n], MSE_0[:, :n], map_peaks[:, end])
            for L, n, end in zip(self.lengths, steps, at, strict=True)
        }

    def _flipped(self, window: NeighbourWindow[_Views], slices: SliceSet) -> Iterator[Slice]:
        for item in window.announced(slices.slices()):
            assert item is not None
            yield self.refinement.flip(item)

    def _peaks(
        self, complete: Iterable[tuple[Slice, Window[_Views]]]
    ) -> dict[int, list[list[float]]]:
        """The peaks of the maps that are cut, by end, by w, of slices whose windows are complete,
        by key."""
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
