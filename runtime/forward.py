"""The guided and unguided forward process over a stream of slices (paper, section 4).

Nothing is reconstructed: each slice is noised step by step, and at each visited timestep the
network's two predictions of the clean slice are handed to a *digest*, which decides what is kept
and when the slice may leave. Slices share the network's batch as a row of slots: each stands at a
timestep of its own, and where one leaves the next one enters at the first timestep.
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
ENCODINGS = ("ddim", "ddpm")


@dataclass(frozen=True)
class Process:
    """The forward process up to timestep ``L``.

    ``stride``, ``spacing``: see :meth:`anofpdm.runtime.schedule.Schedule.visited`; ``encoding``:
    where x_t comes from, ``ddim`` (eq. 4, from the step before) or ``ddpm`` (eq. 2, fresh noise);
    ``clip``: whether predictions of the clean slice are clipped to [-1, 1].
    """

    schedule: Schedule
    L: int
    stride: int = 1
    clip: bool = True
    encoding: str = "ddim"
    spacing: str = "even"

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding must be ddim or ddpm, not {self.encoding!r}")

    @property
    def timesteps(self) -> NDArray[np.int64]:
        """(n,) visited timesteps, 1-based."""
        return self.schedule.visited(self.L, self.stride, self.spacing)


@dataclass(frozen=True)
class Slice:
    """``x0``: (C, H, W) float32 in [-1, 1]; ``key``: what its noise depends on, non-negative;
    ``volume``: whose slice it is, for the caller."""

    key: int
    x0: Float32
    volume: int = 0


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

    def add(self, step: Step, UGP: Float32) -> bool:
        """Digest a step, and say whether the slice may leave before L.

        ``UGP`` is the step's unguided prediction, which the process needs too.
        """
        ...


D = TypeVar("D", bound=Digest)


@dataclass
class _Slot(Generic[D]):
    """A slice on its way. ``x_t``: where it stands in DDIM encoding, None before it has moved."""

    slice: Slice
    digest: D
    x_t: Float32 | None = None
    visited: int = 0
    left: bool = False


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
    slots : how many samples share the network's batch; does not change results

    Yields
    ------
    Each slice with its digest, as soon as its digest lets it go or it has arrived at L. Memory does
    not grow with L or with the number of slices.
    """
    timesteps = process.timesteps
    abar = process.schedule.abar[timesteps - 1]
    n = len(timesteps)

    def noised(item: Slice, i: int) -> Float32:
        """A slice at the i-th visited timestep, straight from the clean one (eq. 2)."""
        noise = slice_noise(seed, item.key, int(timesteps[i]), item.x0.shape)
        clean = np.float32(math.sqrt(abar[i])) * item.x0
        return clean + np.float32(math.sqrt(1 - abar[i])) * noise

    waiting = iter(slices)
    row: list[_Slot[D]] = []
    while True:
        for entering in itertools.islice(waiting, slots - len(row)):
            row.append(_Slot(entering, new_digest()))
        if not row:
            return
        independent = process.encoding == "ddpm"
        shares = _shares(row, slots, n) if independent else ((slot, slot.visited) for slot in row)
        batch = [
            (slot, i, noised(slot.slice, i) if slot.x_t is None else slot.x_t) for slot, i in shares
        ]
        x_t = np.stack([sample for _, _, sample in batch])
        t = np.array([timesteps[i] for _, i, _ in batch])
        for (slot, i, sample), eps_healthy, eps_null in zip(batch, *denoiser(x_t, t), strict=True):
            if slot.left:
                continue
            step = Step(
                int(timesteps[i]),
                float(abar[i]),
                process.clip,
                slot.slice.x0,
                sample,
                eps_healthy,
                eps_null,
            )
            UGP = step.UGP()
            slot.left = slot.digest.add(step, UGP) or i + 1 == n
            slot.visited += 1
            if not slot.left and not independent:
                slot.x_t = ddim_step(sample, UGP, abar[i], abar[i + 1])
        yield from ((slot.slice, slot.digest) for slot in row if slot.left)
        row = [slot for slot in row if not slot.left]


def ddim_step(x_t: Float32, UGP: Float32, abar_t: float, abar_next: float) -> Float32:
    """Deterministic encoding from one visited timestep to the next (eq. 4)."""
    direction = (x_t - np.float32(math.sqrt(abar_t)) * UGP) / np.float32(math.sqrt(1 - abar_t))
    clean = np.float32(math.sqrt(abar_next)) * UGP
    return np.asarray(clean + np.float32(math.sqrt(1 - abar_next)) * direction, np.float32)


def _shares(row: list[_Slot[D]], slots: int, n: int) -> Iterator[tuple[_Slot[D], int]]:
    """Which steps of which slices make the next batch when steps do not need each other (DDPM).

    One of each slice; spare slots, when no more slices wait, go to further steps of the first ones.
    The steps of a slice come in order.
    """
    spare = slots - len(row)
    for slot in row:
        extra = min(spare, n - slot.visited - 1)
        spare -= extra
        for i in range(slot.visited, slot.visited + 1 + extra):
            yield slot, i
