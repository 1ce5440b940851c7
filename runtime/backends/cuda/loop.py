"""One row of slots on a GPU: the state stays there, a step is one launch, and the host reads what
was found some steps later."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError
from ...method.accumulator import Finding
from ...method.process import Slice
from ..base import BROKEN_NETWORK
from .device import Event, Gpu
from .layout import BROKEN, LEFT, SLOT, STEPPED, Plan
from .network import DeviceNetwork
from .state import RowState

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
_AHEAD = 4


@dataclass
class _Rider:
    """A slice in the row. ``steps``: how many were asked for; ``reports``: what they said;
    ``H``: where its map is copied to when it leaves, done when ``copied`` is."""

    slice: Slice
    slot: int
    steps: int = 0
    stopped: bool = False
    reports: list[Float64] = field(default_factory=list)
    H: Float32 | None = None
    copied: Event | None = None


@dataclass(frozen=True)
class _UnderWay:
    """A step that was asked for; ``reports``: (slots, 3 K + 1) float64, there when ``done`` is."""

    done: Event
    reports: Float64
    riders: tuple[_Rider, ...]


class DeviceRow:
    """See :class:`anofpdm.runtime.backends.scheduler.Row`.

    The host asks for steps and is at most ``ahead`` of what it has read. A slice that stops early
    is frozen on the GPU at once; its slot is free when the host has read so. ``state``: what it
    works on.

    Raises
    ------
    DeviceMemoryError
        If the GPU has too little memory for so many slots.
    """

    def __init__(
        self, gpu: Gpu, network: DeviceNetwork, plan: Plan, slots: int, ahead: int = _AHEAD
    ) -> None:
        self._gpu, self._plan, self._ahead, self._slots = gpu, plan, ahead, slots
        self._steps, K = len(plan.recipe.process.timesteps), len(plan.recipe.scored)
        self.state = RowState(gpu, network, plan, slots)
        image = (plan.size, plan.size)
        self._entry_x0 = gpu.page_locked((slots, plan.channels, *image), np.float32)
        self._entry = gpu.page_locked((slots,), SLOT)
        self._entered: list[Event | None] = [None] * slots
        self._reports = [gpu.page_locked((slots, 3 * K + 1), np.float64) for _ in range(ahead + 1)]
        self._spare_maps: list[Float32] = []
        self._forget()

    def _forget(self) -> None:
        self._spare = list(self._reports)
        self._empty = list(range(self._slots))
        self._riding: dict[int, _Rider] = {}
        self._under_way: deque[_UnderWay] = deque()
        self._leaving: deque[_Rider] = deque()

    # ---- the protocol

    @property
    def free(self) -> int:
        """See :class:`anofpdm.runtime.backends.scheduler.Row`."""
        return len(self._empty)

    @property
    def busy(self) -> bool:
        """See :class:`anofpdm.runtime.backends.scheduler.Row`."""
        return bool(self._riding or self._under_way or self._leaving)

    def enter(self, item: Slice) -> None:
        """See :class:`anofpdm.runtime.backends.scheduler.Row`."""
        slot = heapq.heappop(self._empty)
        before = self._entered[slot]
        if before:
            before.wait()  # what is copied from must not change before that is done
        self._entry_x0[slot] = item.x0
        self._entry[slot] = (item.key, 0, 0, 1, 0)
        self._gpu.upload(self._entry_x0[slot], self.state.x0[slot])
        self._gpu.upload(self._entry[slot : slot + 1], self.state.slots[slot])
        self._entered[slot] = self._gpu.event()
        self._riding[slot] = _Rider(item, slot)

    def step(self) -> None:
        """See :class:`anofpdm.runtime.backends.scheduler.Row`."""
        if not self._riding:  # only results are under way: wait for the next
            if self._under_way:
                self._read()
            else:
                _event(self._leaving[0]).wait()
            return
        if len(self._under_way) > self._ahead:
            self._read()
            if not self._riding:
                return
        needed = max(self._riding) + 1
        launches = self.state.launches
        launches[min(width for width in launches if width >= needed)]()
        reports = self._spare.pop()
        self._gpu.download(self.state.reports[:needed], reports[:needed])
        riders = tuple(self._riding.values())
        self._under_way.append(_UnderWay(self._gpu.event(), reports, riders))
        for rider in riders:
            rider.steps += 1
            if rider.steps == self._steps:
                self._depart(rider)

    def leave(self) -> Iterator[tuple[Slice, Finding]]:
        """See :class:`anofpdm.runtime.backends.scheduler.Row`."""
        while self._under_way and self._under_way[0].done.done():
            self._read()
        # A slice's map is copied behind its last step, but that one may not have been read.
        while self._leaving and self._leaving[0].stopped and _event(self._leaving[0]).done():
            rider = self._leaving.popleft()
            yield rider.slice, self._finding(rider)

    # ---- what happens on the way

    def _read(self) -> None:
        """Read the oldest step that is under way."""
        step = self._under_way.popleft()
        step.done.wait()
        for rider in step.riders:
            if rider.stopped:
                continue
            *numbers, state = step.reports[rider.slot]
            if state == BROKEN:
                raise BundleError(BROKEN_NETWORK)
            assert state in (STEPPED, LEFT), state
            rider.reports.append(np.array(numbers))
            if state == LEFT:
                rider.stopped = True
                if self._riding.get(rider.slot) is rider:  # earlier than at L
                    self._depart(rider)
        self._spare.append(step.reports)

    def _depart(self, rider: _Rider) -> None:
        """Have a slice's map copied, and give its slot to the next."""
        source = self.state.H[rider.slot]
        rider.H = self._spare_maps.pop() if self._spare_maps else None
        if rider.H is None:
            rider.H = self._gpu.page_locked(source.shape, np.float32)
        self._gpu.download(source, rider.H)
        rider.copied = self._gpu.event()
        self._leaving.append(rider)
        del self._riding[rider.slot]
        heapq.heappush(self._empty, rider.slot)

    def _finding(self, rider: _Rider) -> Finding:
        assert rider.H is not None
        H = rider.H.copy()
        self._spare_maps.append(rider.H)
        curves = np.array(rider.reports).reshape(len(rider.reports), 3, -1)
        M = np.ascontiguousarray(curves[:, 0])
        t_e = self._plan.recipe.process.timesteps[M.argmax(axis=0)]  # eq. 21
        return Finding(M, curves[:, 1], curves[:, 2], t_e, H)

    def clear(self) -> None:
        """Empty the row, whoever is in it."""
        self._gpu.wait()
        self._gpu.send(np.zeros(self._slots, SLOT), self.state.slots)
        self._forget()


def _event(rider: _Rider) -> Event:
    assert rider.copied
    return rider.copied
