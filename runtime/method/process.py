"""The forward process and the slices that go through it (paper, section 4).

Nothing is reconstructed: each slice is noised step by step, and what the network predicts of the
clean slice at each visited timestep is accumulated at once.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .schedule import Schedule

Float32 = NDArray[np.float32]
ENCODINGS = ("ddim", "ddpm")


@dataclass(frozen=True)
class Process:
    """The forward process up to timestep ``L``."""

    schedule: Schedule  # abar_t
    L: int  # the last timestep that may be visited
    stride: int = 1  # every stride-th timestep, see Schedule.visited
    clip: bool = True  # whether predictions of the clean slice are clipped to [-1, 1]
    encoding: str = "ddim"  # x_t from the step before (ddim, eq. 4) or fresh noise (ddpm, eq. 2)
    spacing: str = "even"  # of the visited timesteps: even or log-snr

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(f"encoding must be ddim or ddpm, not {self.encoding!r}")

    @property
    def timesteps(self) -> NDArray[np.int64]:
        """(n,) visited timesteps, 1-based."""
        return self.schedule.visited(self.L, self.stride, self.spacing)


@dataclass(frozen=True)
class SlicePosition:
    """Where a slice lies in its volume."""

    level: int  # axial index, from 0 at the feet
    spacing_mm: float = 0.0  # to the next level, 0 where that is not known


@dataclass(frozen=True)
class Slice:
    """One axial slice on the model's grid."""

    key: int  # what its noise depends on, non-negative
    x0: Float32  # (C, H, W) in [-1, 1]
    volume: int = 0  # whose slice it is, for the caller
    at: SlicePosition | None = None  # None for level `key`, spacing unknown

    @property
    def position(self) -> SlicePosition:
        """Where it lies."""
        return self.at or SlicePosition(self.key)
