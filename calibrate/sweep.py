"""One sweep over labelled slices that serves every candidate guidance strength.

The encoding does not depend on w, so one pair of network evaluations a step yields the curves of
all candidates; and a sweep up to L begins with the sweep up to any smaller L.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.denoiser import Denoiser
from anofpdm.runtime.forward import Process, Slice, Step, run
from anofpdm.runtime.select import mean_square
from anofpdm.runtime.sliceset import SliceSet

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """What calibration looks at, for N slices, K candidates, n visited steps, C scored modalities.

    ``M``, ``MSE_h``: (N, K, n, C) float64; ``MSE_0``: (N, n, C); ``timesteps``: (n,), ``w``: (K,).
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


@dataclass
class _CurveDigest:
    """Records the curves of one slice for several w."""

    w: tuple[float, ...]
    scored: list[int]
    M: list[list[Float64]] = field(default_factory=list)
    MSE_h: list[list[Float64]] = field(default_factory=list)
    MSE_0: list[Float64] = field(default_factory=list)

    def add(self, step: Step, UGP: Float32) -> None:
        x0, UGP = step.x0[self.scored], UGP[self.scored]
        HGPs = [step.HGP(w)[self.scored] for w in self.w]
        self.M.append([mean_square(HGP - UGP) for HGP in HGPs])
        self.MSE_h.append([mean_square(HGP - x0) for HGP in HGPs])
        self.MSE_0.append(mean_square(UGP - x0))


def sweep(
    slices: SliceSet,
    denoiser: Denoiser,
    process: Process,
    w: tuple[float, ...],
    scored: tuple[int, ...],
    *,
    seed: int = 0,
    slots: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Curves:
    """Run the forward process over all slices and record the curves."""
    stream = run(
        process,
        denoiser,
        (Slice(i, slices.x0(i)) for i in range(len(slices))),
        lambda: _CurveDigest(w, list(scored)),
        seed=seed,
        slots=slots,
    )
    digests: dict[int, _CurveDigest] = {}
    for item, digest in stream:
        digests[item.key] = digest
        progress(len(digests), len(slices))
    ordered = [digests[i] for i in range(len(slices))]
    return Curves(
        w,
        process.timesteps,
        np.array([digest.M for digest in ordered]).swapaxes(1, 2),
        np.array([digest.MSE_h for digest in ordered]).swapaxes(1, 2),
        np.array([digest.MSE_0 for digest in ordered]),
    )
