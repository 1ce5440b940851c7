"""Slots on a GPU: the state stays there, a step is one launch, and the host reads its results some
steps later."""

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError
from ...method.accumulator import SliceCurves
from ...method.process import Slice
from ..base import BROKEN_NETWORK
from .device import Event, Gpu
from .layout import BROKEN, LEFT, SLOT, STEPPED, LoopLayout
from .network import DeviceNetwork
from .state import SlotState

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
_AHEAD = 4


@dataclass
class _Occupant:
    """A slice in a slot, or on its way out."""

    slice: Slice  # the clean one
    slot: int  # its index
    steps: int = 0  # launched so far
    stopped: bool = False  # whether the report of its last step has been read
    reports: list[Float64] = field(default_factory=list)  # (3 K,) a step: M_t, MSE_h, MSE_0
    H: Float32 | None = None  # (K, H, W) page-locked, where its map is copied to
    copied: Event | None = None  # done when the map is there


@dataclass(frozen=True)
class _PendingStep:
    """A step that was launched and has not been read."""

    done: Event
    reports: Float64  # (slots, 3 K + 1) page-locked, valid when the step is done
    occupants: tuple[_Occupant, ...]  # the slices that took it


class DeviceSlots:
    """Slots whose steps a GPU computes; the host launches up to ``ahead`` steps beyond the last one
    that it has read.

    A slice that stops early is frozen on the GPU at once; its slot is free when the host has read
    so.

    Raises
    ------
    DeviceMemoryError
        If the GPU has too little memory for so many slots.
    """

    def __init__(
        self, gpu: Gpu, network: DeviceNetwork, layout: LoopLayout, slots: int, ahead: int = _AHEAD
    ) -> None:
        self._gpu, self._layout, self._ahead, self._slots = gpu, layout, ahead, slots
        self._steps, K = len(layout.recipe.process.timesteps), len(layout.recipe.scored)
        self.state = SlotState(gpu, network, layout, slots)
        image = (layout.size, layout.size)
        self._entry_x0 = gpu.page_locked((slots, layout.channels, *image), np.float32)
        self._entry = gpu.page_locked((slots,), SLOT)
        self._entered: list[Event | None] = [None] * slots
        self._reports = [gpu.page_locked((slots, 3 * K + 1), np.float64) for _ in range(ahead + 1)]
        self._spare_maps: list[Float32] = []
        self._reset()

    def _reset(self) -> None:
        self._spare = list(self._reports)
        self._empty = list(range(self._slots))
        self._occupants: dict[int, _Occupant] = {}
        self._pending: deque[_PendingStep] = deque()
        self._leaving: deque[_Occupant] = deque()

    # ---- the protocol

    @property
    def free(self) -> int:
        return len(self._empty)

    @property
    def busy(self) -> bool:
        return bool(self._occupants or self._pending or self._leaving)

    def enter(self, item: Slice) -> None:
        """Let a slice into the free slot of the lowest index, so that batches stay short."""
        slot = heapq.heappop(self._empty)
        previous = self._entered[slot]
        if previous:
            previous.wait()  # its upload must be done before its source changes
        self._entry_x0[slot] = item.x0
        self._entry[slot] = (item.key, 0, 0, 1, 0)
        self._gpu.upload(self._entry_x0[slot], self.state.x0[slot])
        self._gpu.upload(self._entry[slot : slot + 1], self.state.slots[slot])
        self._entered[slot] = self._gpu.event()
        self._occupants[slot] = _Occupant(item, slot)

    def step(self) -> None:
        """Launch a step; with empty slots, wait for the next result instead."""
        if not self._occupants:  # only results are under way
            if self._pending:
                self._read()
            else:
                _event(self._leaving[0]).wait()
            return
        if len(self._pending) > self._ahead:
            self._read()
            if not self._occupants:
                return
        needed = max(self._occupants) + 1
        launches = self.state.launches
        launches[min(width for width in launches if width >= needed)]()
        reports = self._spare.pop()
        self._gpu.download(self.state.reports[:needed], reports[:needed])
        occupants = tuple(self._occupants.values())
        self._pending.append(_PendingStep(self._gpu.event(), reports, occupants))
        for occupant in occupants:
            occupant.steps += 1
            if occupant.steps == self._steps:
                self._depart(occupant)

    def finished(self) -> Iterator[tuple[Slice, SliceCurves]]:
        while self._pending and self._pending[0].done.done():
            self._read()
        # A slice's map is copied behind its last step, but that one may not have been read.
        while self._leaving and self._leaving[0].stopped and _event(self._leaving[0]).done():
            occupant = self._leaving.popleft()
            yield occupant.slice, self._curves(occupant)

    # ---- reading results

    def _read(self) -> None:
        """Read the oldest step that is under way."""
        step = self._pending.popleft()
        step.done.wait()
        for occupant in step.occupants:
            if occupant.stopped:
                continue
            *numbers, state = step.reports[occupant.slot]
            if state == BROKEN:
                raise BundleError(BROKEN_NETWORK)
            assert state in (STEPPED, LEFT), state
            occupant.reports.append(np.array(numbers))
            if state == LEFT:
                occupant.stopped = True
                if self._occupants.get(occupant.slot) is occupant:  # earlier than at L
                    self._depart(occupant)
        self._spare.append(step.reports)

    def _depart(self, occupant: _Occupant) -> None:
        """Have a slice's map copied, and give its slot to the next."""
        source = self.state.H[occupant.slot]
        occupant.H = self._spare_maps.pop() if self._spare_maps else None
        if occupant.H is None:
            occupant.H = self._gpu.page_locked(source.shape, np.float32)
        self._gpu.download(source, occupant.H)
        occupant.copied = self._gpu.event()
        self._leaving.append(occupant)
        del self._occupants[occupant.slot]
        heapq.heappush(self._empty, occupant.slot)

    def _curves(self, occupant: _Occupant) -> SliceCurves:
        assert occupant.H is not None
        H = occupant.H.copy()
        self._spare_maps.append(occupant.H)
        curves = np.array(occupant.reports).reshape(len(occupant.reports), 3, -1)
        M = np.ascontiguousarray(curves[:, 0])
        t_e = self._layout.recipe.process.timesteps[M.argmax(axis=0)]  # eq. 21
        return SliceCurves(M, curves[:, 1], curves[:, 2], t_e, H)

    def clear(self) -> None:
        """Empty all slots; what is in them is dropped."""
        self._gpu.wait()
        self._gpu.send(np.zeros(self._slots, SLOT), self.state.slots)
        self._reset()


def _event(occupant: _Occupant) -> Event:
    assert occupant.copied
    return occupant.copied
