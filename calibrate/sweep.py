"""One sweep over labelled slices that serves every candidate guidance strength.

The encoding does not depend on w, so one pair of network evaluations a step yields the curves of
all candidates; and a sweep up to L begins with the sweep up to any smaller L.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.denoiser import Denoiser
from anofpdm.runtime.forward import Process, run
from anofpdm.runtime.host_row import HostRow, Step
from anofpdm.runtime.neighbours import shown
from anofpdm.runtime.select import AnomalyDigest
from anofpdm.runtime.sliceset import SliceSet

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """What calibration looks at, for N slices, K candidates, n visited steps, C scored modalities.

    ``M``, ``MSE_h``: (N, K, n, C) float64; ``MSE_0``: (N, n, C); ``timesteps``: (n,), ``w``:
    (K,).
    """

    w: tuple[float, ...]
    timesteps: NDArray[np.int64]
    M: Float64
    MSE_h: Float64
    MSE_0: Float64

    def up_to(self, L: int) -> Curves:
        """The curves of a sweep that ends at ``L``."""
        n = int((self.timesteps <= L).sum())
        return Curves(
            self.w,
            self.timesteps[:n],
            self.M[:, :, :n],
            self.MSE_h[:, :, :n],
            self.MSE_0[:, :n],
        )

    def take(self, slices: NDArray[np.bool_]) -> Curves:
        """Of these slices alone."""
        return Curves(
            self.w,
            self.timesteps,
            self.M[slices],
            self.MSE_h[slices],
            self.MSE_0[slices],
        )


class _CurveDigest:
    """Records one slice for several w: what the runtime computes for each."""

    def __init__(self, w: tuple[float, ...], scored: tuple[int, ...]) -> None:
        self.by_w = [AnomalyDigest(strength, scored) for strength in w]

    def add(self, step: Step, UGP: Float32) -> bool:
        """Never lets a slice go: what a stopping rule would do is read off the curves."""
        for digest in self.by_w:
            digest.add(step, UGP)
        return False


def sweep(
    slices: SliceSet,
    denoiser: Denoiser,
    process: Process,
    w: tuple[float, ...],
    scored: tuple[int, ...],
    *,
    seed: int = 0,
    slots: int = 4,
    mirrored: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Curves:
    """Run the forward process over all slices and record the curves.

    ``mirrored``: whether every second one is shown mirrored, see
    :mod:`anofpdm.runtime.neighbours`.
    """
    row = HostRow(process, denoiser, lambda: _CurveDigest(w, scored), seed=seed, slots=slots)
    curves: dict[int, tuple[Float64, Float64, Float64]] = {}
    for item, digest in run(row, (shown(one, mirrored) for one in slices.slices())):
        curves[item.key] = (
            np.array([one.M for one in digest.by_w]),
            np.array([one.MSE_h for one in digest.by_w]),
            np.array(digest.by_w[0].MSE_0),
        )
        progress(len(curves), len(slices))
    columns = zip(*(curves[i] for i in range(len(slices))), strict=True)
    M, MSE_h, MSE_0 = (np.array(column) for column in columns)
    return Curves(w, process.timesteps, M, MSE_h, MSE_0)


def sweeps(
    slices: SliceSet,
    denoiser: Denoiser,
    process: Process,
    lengths: tuple[int, ...],
    w: tuple[float, ...],
    scored: tuple[int, ...],
    *,
    seed: int = 0,
    slots: int = 4,
    mirrored: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, Curves]:
    """The curves of every L in ``lengths``: of one sweep to the largest, but where timesteps are
    spaced by log SNR, which visits others for every L."""

    def run_to(part: int, L: int) -> Curves:
        return sweep(
            slices,
            denoiser,
            replace(process, L=L),
            w,
            scored,
            seed=seed,
            slots=slots,
            mirrored=mirrored,
            progress=lambda done, total: progress(part * total + done, parts * total),
        )

    wanted = sorted(set(lengths))
    if process.spacing == "even":
        parts = 1
        whole = run_to(0, wanted[-1])
        return {L: whole.up_to(L) for L in wanted}
    parts = len(wanted)
    return {L: run_to(part, L) for part, L in enumerate(wanted)}
