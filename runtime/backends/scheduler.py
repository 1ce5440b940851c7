"""Continuous batching: slices share the network's batch as slots, each at a timestep of its own.

Where a slice is done the next one takes its slot at the first timestep, so the batch stays full.
This module decides who is in a slot; what a step computes is in :mod:`.cpu.numpy_loop` and
:mod:`.cuda.loop`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from ..method.process import Slice

_END = object()
Cancelled = Callable[[], bool]
R_co = TypeVar("R_co", covariant=True)


def never() -> bool:
    """Nobody cancels."""
    return False


class Slots(Protocol[R_co]):
    """The slots of a batch, in which slices go through the process."""

    @property
    def free(self) -> int:
        """How many slices may enter now."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a slice is in a slot, or a result is still on its way."""
        ...

    def enter(self, item: Slice) -> None:
        """Let a slice into a free slot; its first step is at the first visited timestep."""
        ...

    def step(self) -> None:
        """Take every slice one visited timestep further, or more if there is room."""
        ...

    def finished(self) -> Iterator[tuple[Slice, R_co]]:
        """The slices that are done, with their results; each once, and some steps late where that
        keeps the batch moving."""
        ...


def run(
    slots: Slots[R_co], slices: Iterable[Slice | None], cancelled: Cancelled = never
) -> Iterator[tuple[Slice, R_co]]:
    """Take every slice through the process.

    A slice is fetched when there is a slot for it, and yielded with its result as soon as it is
    done: memory does not grow with their number. None stands for a slice that has not come yet:
    those in the slots go on meanwhile. ``cancelled()`` is called before every step: once it is
    true, the run ends and what is in the slots is dropped.
    """
    waiting, more = iter(slices), True
    while (more or slots.busy) and not cancelled():
        while more and slots.free:
            item = next(waiting, _END)
            if isinstance(item, Slice):
                slots.enter(item)
                continue
            more = item is None
            break
        if slots.busy:
            slots.step()
            yield from slots.finished()
