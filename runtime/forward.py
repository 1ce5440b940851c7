"""The forward process over a stream of slices (paper, section 4).

Nothing is reconstructed: each slice is noised step by step, and what the network predicts of the
clean slice at each visited timestep is digested at once. Slices share the network's batch as a row
of slots: each stands at a timestep of its own, and where one leaves the next one enters at the
first timestep. This module says who is in the row; what a step does is said by
:mod:`anofpdm.runtime.host_row` in NumPy and by :mod:`anofpdm.runtime.gpu.row` on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

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


_END = object()
Cancelled = Callable[[], bool]
R_co = TypeVar("R_co", covariant=True)


def never() -> bool:
    """Nobody cancels."""
    return False


class Row(Protocol[R_co]):
    """A row of slots, in which slices go through the process."""

    @property
    def free(self) -> int:
        """How many slices may enter now."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a slice is in a slot, or what was found on one is still on its way."""
        ...

    def enter(self, item: Slice) -> None:
        """Let a slice into a free slot; its first step is at the first visited timestep."""
        ...

    def step(self) -> None:
        """Take every slice in the row one visited timestep further, or more if there is room."""
        ...

    def leave(self) -> Iterator[tuple[Slice, R_co]]:
        """The slices that are done, with what was found; each once, and some steps late where that
        keeps the row moving."""
        ...


def run(
    row: Row[R_co], slices: Iterable[Slice | None], cancelled: Cancelled = never
) -> Iterator[tuple[Slice, R_co]]:
    """Take every slice through the process.

    Slices are taken when there is a slot for them, and yielded with what was found on them as soon
    as they are done: memory does not grow with their number. None stands for one that has not come
    yet: those in the row go on meanwhile. Once ``cancelled()``, which is asked at every step, it
    ends, and what is in the row is dropped.
    """
    waiting, more = iter(slices), True
    while (more or row.busy) and not cancelled():
        while more and row.free:
            item = next(waiting, _END)
            if isinstance(item, Slice):
                row.enter(item)
                continue
            more = item is None
            break
        if row.busy:
            row.step()
            yield from row.leave()
