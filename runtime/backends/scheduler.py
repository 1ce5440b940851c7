"""Continuous batching: slices share the network's batch as slots, each at a timestep of its own.

Where a slice is done the next one takes its slot at the first timestep, so the batch stays full.
This module decides who is in a slot; what a step computes is in the NumPy loop and in the GPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from ..method.process import Slice

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
