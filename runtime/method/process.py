"""The forward process and the slices that go through it (paper, section 4).

Nothing is reconstructed: each slice is noised step by step, and what the network predicts of the
clean slice at each visited timestep is accumulated at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .schedule import Schedule

Float32 = NDArray[np.float32]
ENCODINGS = ("ddim", "ddpm")


@dataclass(frozen=True)
class Process:
    """The forward process up to timestep ``L``.

    ``stride``, ``spacing``: see :meth:`anofpdm.runtime.method.schedule.Schedule.visited`; ``encoding``:
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
class Place:
    """Where a slice lies in its volume: its axial ``level``, from 0 at the feet, and how far it is
    to the next one; ``spacing_mm`` is 0 where that is not known."""

    level: int
    spacing_mm: float = 0.0


@dataclass(frozen=True)
class Slice:
    """``x0``: (C, H, W) float32 in [-1, 1]; ``key``: what its noise depends on, non-negative;
    ``volume``: whose slice it is, for the caller; ``at``: where it lies there, None for the level
    ``key``."""

    key: int
    x0: Float32
    volume: int = 0
    at: Place | None = None

    @property
    def place(self) -> Place:
        """Where it lies."""
        return self.at or Place(self.key)
