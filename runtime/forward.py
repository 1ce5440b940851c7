"""The guided and unguided forward process over a stream of slices (paper, section 4).

Nothing is reconstructed: each slice is noised step by step, and at each visited timestep the
network's two predictions of the clean slice are handed to a *digest*, which decides what is kept.
Slices share the network's batch as a row of slots: one that has arrived at L leaves its slot, and
the next one enters at the first timestep.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .denoiser import Denoiser
from .noise import slice_noise
from .schedule import Schedule

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Process:
    """The forward process with DDIM encoding, up to timestep ``L``, every ``stride``-th timestep.

    ``clip``: whether predictions of the clean slice are clipped to [-1, 1].
    """

    schedule: Schedule
    L: int
    stride: int = 1
    clip: bool = True

    @property
    def timesteps(self) -> NDArray[np.int64]:
        """(n,) visited timesteps, 1-based."""
        return self.schedule.visited(self.L, self.stride)


@dataclass(frozen=True)
class Slice:
    """``x0``: (C, H, W) float32 in [-1, 1]; ``key``: what its noise depends on, non-negative."""

    key: int
    x0: Float32


@dataclass(frozen=True)
class Step:
    """One slice at one visited timestep. Arrays are (C, H, W) float32."""

    t: int
    abar: float
    clip: bool
    x0: Float32
    x_t: Float32
    eps_healthy: Float32
    eps_null: Float32

    def HGP(self, w: float) -> Float32:
        """Healthy-guided prediction of the clean slice (eqs. 6, 7)."""
        eps_w = np.float32(1 + w) * self.eps_healthy - np.float32(w) * self.eps_null
        return self._clean(eps_w)

    def UGP(self) -> Float32:
        """Unguided prediction of the clean slice (eq. 10)."""
        return self._clean(self.eps_null)

    def _clean(self, eps: Float32) -> Float32:
        noise = np.float32(math.sqrt(1 - self.abar)) * eps
        clean = np.asarray((self.x_t - noise) / np.float32(math.sqrt(self.abar)), np.float32)
        return np.clip(clean, -1, 1) if self.clip else clean


class Digest(Protocol):
    """Takes in the steps of one slice, in order."""

    def add(self, step: Step, UGP: Float32) -> None:
        """Digest a step; ``UGP`` is the step's unguided prediction, which the process needs too."""
        ...


D = TypeVar("D", bound=Digest)


@dataclass
class _Slot(Generic[D]):
    """A place in the network's batch, and the slice that is in it."""

    slice: Slice
    digest: D
    x_t: Float32
    visited: int = 0


def run(
    process: Process,
    denoiser: Denoiser,
    slices: Iterable[Slice],
    new_digest: Callable[[], D],
    *,
    seed: int = 0,
    slots: int = 4,
) -> Iterator[tuple[Slice, D]]:
    """Take every slice through the process.

    Parameters
    ----------
    new_digest : makes the digest of a slice that enters
    seed : what the noise depends on, besides the slice's key
    slots : how many slices share the network's batch; does not change results

    Yields
    ------
    Each slice with its digest, as soon as it has arrived at L. Memory does not grow with L or with
    the number of slices.
    """
    timesteps = process.timesteps
    abar = process.schedule.abar[timesteps - 1]
    waiting = iter(slices)
    row: list[_Slot[D]] = []
    while True:
        for entering in itertools.islice(waiting, slots - len(row)):
            noise = slice_noise(seed, entering.key, int(timesteps[0]), entering.x0.shape)
            row.append(_Slot(entering, new_digest(), _noised(entering.x0, noise, abar[0])))
        if not row:
            return
        x_t = np.stack([slot.x_t for slot in row])
        t = np.array([timesteps[slot.visited] for slot in row])
        for slot, eps_healthy, eps_null in zip(row, *denoiser(x_t, t), strict=True):
            i = slot.visited
            step = Step(
                int(timesteps[i]),
                float(abar[i]),
                process.clip,
                slot.slice.x0,
                slot.x_t,
                eps_healthy,
                eps_null,
            )
            UGP = step.UGP()
            slot.digest.add(step, UGP)
            slot.visited += 1
            if slot.visited < len(timesteps):
                slot.x_t = ddim_step(slot.x_t, UGP, abar[i], abar[i + 1])
        yield from ((slot.slice, slot.digest) for slot in row if slot.visited == len(timesteps))
        row = [slot for slot in row if slot.visited < len(timesteps)]


def ddim_step(x_t: Float32, UGP: Float32, abar_t: float, abar_next: float) -> Float32:
    """Deterministic encoding from one visited timestep to the next (eq. 4)."""
    direction = (x_t - np.float32(math.sqrt(abar_t)) * UGP) / np.float32(math.sqrt(1 - abar_t))
    clean = np.float32(math.sqrt(abar_next)) * UGP
    return np.asarray(clean + np.float32(math.sqrt(1 - abar_next)) * direction, np.float32)


def _noised(x0: Float32, noise: Float32, abar: float) -> Float32:
    """A slice at the first visited timestep (eq. 2)."""
    return np.float32(math.sqrt(abar)) * x0 + np.float32(math.sqrt(1 - abar)) * noise
