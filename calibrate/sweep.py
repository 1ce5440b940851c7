"""One sweep over labelled slices that serves every candidate guidance strength.

The encoding does not depend on w, so one pair of network evaluations a step yields the curves of
all candidates; and a sweep up to L begins with the sweep up to any smaller L.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.anomaly_map import MapRule
from anofpdm.runtime.denoiser import Denoiser
from anofpdm.runtime.forward import Process, run
from anofpdm.runtime.host_row import HostRow, Step
from anofpdm.runtime.neighbours import shown
from anofpdm.runtime.postprocess import smooth
from anofpdm.runtime.select import AnomalyDigest
from anofpdm.runtime.sliceset import SliceSet
from anofpdm.runtime.verdict import Statistics, alignment, cosine, map_peak

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """What calibration looks at, for N slices, K candidates, n visited steps, C scored modalities.

    ``M``, ``MSE_h``: (N, K, n, C) float64; ``MSE_0``: (N, n, C); ``map_peak``: (N, K, n), that of
    the map whose t_e is the best of the steps so far, NaN where that is the step itself and none of
    the lengths ends there, so that no slice is left there; ``timesteps``: (n,), ``w``: (K,).
    """

    w: tuple[float, ...]
    timesteps: NDArray[np.int64]
    M: Float64
    MSE_h: Float64
    MSE_0: Float64
    map_peak: Float64

    def statistics(self, k: int, steps: NDArray[np.int64] | None = None) -> Statistics:
        """What verdicts go by, (N,) each.

        ``k``: of which guidance strength; ``steps``: (N,) in 1..n, after how many of them each
        slice is left (default: all).
        """
        M, MSE_h, MSE_0, peaks = self.M[:, k], self.MSE_h[:, k], self.MSE_0, self.map_peak[:, k]
        if steps is None:
            return Statistics(cosine(MSE_h, MSE_0), alignment(M, MSE_h, MSE_0), peaks[:, -1])
        taken = (np.arange(M.shape[1]) < steps[:, None])[..., None]
        M, MSE_h, MSE_0 = (np.where(taken, curve, 0) for curve in (M, MSE_h, MSE_0))
        last = np.take_along_axis(peaks, steps[:, None] - 1, axis=1)[:, 0]
        return Statistics(cosine(MSE_h, MSE_0), alignment(M, MSE_h, MSE_0), last)

    def up_to(self, L: int) -> Curves:
        """The curves of a sweep that ends at ``L``."""
        n = int((self.timesteps <= L).sum())
        return Curves(
            self.w,
            self.timesteps[:n],
            self.M[:, :, :n],
            self.MSE_h[:, :, :n],
            self.MSE_0[:, :n],
            self.map_peak[:, :, :n],
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


class _CurveDigest:
    """Records one slice for several w: what the runtime computes for each.

    ``ends``: the timesteps after which slices may be left although M_t still rises.
    """

    def __init__(
        self, w: tuple[float, ...], scored: tuple[int, ...], rule: MapRule, ends: frozenset[int]
    ) -> None:
        self.by_w = [AnomalyDigest(strength, scored, rule) for strength in w]
        self.map_peaks: list[list[float]] = [[] for _ in w]
        self._ends = ends

    def add(self, step: Step, UGP: Float32) -> bool:
        """Never lets a slice go: what a stopping rule would do is read off the curves."""
        for digest, map_peaks in zip(self.by_w, self.map_peaks, strict=True):
            digest.add(step, UGP)
            changed = step.t in digest.t_e
            if changed and step.t not in self._ends:
                map_peaks.append(math.nan)
            elif changed or math.isnan(map_peaks[-1]):
                map_peaks.append(map_peak(smooth(digest.H.mean(axis=0))))
            else:
                map_peaks.append(map_peaks[-1])
        return False


def sweep(
    slices: SliceSet,
    denoiser: Denoiser,
    process: Process,
    w: tuple[float, ...],
    scored: tuple[int, ...],
    *,
    lengths: tuple[int, ...] = (),
    anomaly_map: str = "aggregate",
    seed: int = 0,
    slots: int = 4,
    mirrored: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Curves:
    """Run the forward process over all slices and record the curves.

    ``lengths``: where the curves may be cut (default: at their end); ``anomaly_map``: whose peak,
    see :class:`anofpdm.runtime.anomaly_map.MapRule`; ``mirrored``: whether every second slice is
    shown mirrored, see :mod:`anofpdm.runtime.neighbours`.
    """
    rule, t = MapRule(anomaly_map), process.timesteps
    ends = frozenset(int(t[t <= L][-1]) for L in lengths or (process.L,))
    row = HostRow(
        process, denoiser, lambda: _CurveDigest(w, scored, rule, ends), seed=seed, slots=slots
    )
    curves: dict[int, tuple[Float64, ...]] = {}
    for item, digest in run(row, (shown(one, mirrored) for one in slices.slices())):
        curves[item.key] = (
            np.array([one.M for one in digest.by_w]),
            np.array([one.MSE_h for one in digest.by_w]),
            np.array(digest.by_w[0].MSE_0),
            np.array(digest.map_peaks),
        )
        progress(len(curves), len(slices))
    columns = zip(*(curves[i] for i in range(len(slices))), strict=True)
    return Curves(w, process.timesteps, *(np.array(column) for column in columns))


def sweeps(
    slices: SliceSet,
    denoiser: Denoiser,
    process: Process,
    lengths: tuple[int, ...],
    w: tuple[float, ...],
    scored: tuple[int, ...],
    *,
    anomaly_map: str = "aggregate",
    seed: int = 0,
    slots: int = 4,
    mirrored: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, Curves]:
    """The curves of every L in ``lengths``: of one sweep to the largest, but where timesteps are
    spaced by log SNR, which visits others for every L."""

    def run_to(part: int, L: int, ends: tuple[int, ...]) -> Curves:
        return sweep(
            slices,
            denoiser,
            replace(process, L=L),
            w,
            scored,
            lengths=ends,
            anomaly_map=anomaly_map,
            seed=seed,
            slots=slots,
            mirrored=mirrored,
            progress=lambda done, total: progress(part * total + done, parts * total),
        )

    wanted = sorted(set(lengths))
    if process.spacing == "even":
        parts = 1
        whole = run_to(0, wanted[-1], lengths)
        return {L: whole.up_to(L) for L in wanted}
    parts = len(wanted)
    return {L: run_to(part, L, (L,)) for part, L in enumerate(wanted)}
