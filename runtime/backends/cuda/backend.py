"""The whole forward process on a GPU."""

import atexit
import functools
import weakref
from collections.abc import Iterable, Iterator

from ...errors import DeviceMemoryError, OptionsError
from ...method.accumulator import SliceCurves
from ...method.process import Slice
from ..base import Denoiser, Recipe
from ..cpu.numpy_loop import NumpyBackend
from ..scheduler import Cancelled, never, run
from .device import Gpu
from .layout import LoopLayout
from .loop import DeviceSlots
from .network import DeviceNetwork, HostDenoiser


class GpuBackend:
    """The whole loop around a network on a GPU; owns both.

    Parameters
    ----------
    device : what it runs on, in words
    channels, size : of the slices, (C, size, size)
    slots : how many slices share the network's batch; halved, with a note, where memory is short
    """

    precision = "fp32"

    def __init__(
        self, gpu: Gpu, network: DeviceNetwork, device: str, channels: int, size: int, slots: int
    ) -> None:
        if slots < 1:
            raise OptionsError(f"slots must be at least 1, not {slots}")
        self.gpu, self.network, self.device = gpu, network, device
        self._channels, self._size = channels, size
        self.slots = self._requested_slots = slots
        self._host = HostDenoiser(gpu, network, slots)
        self._idle: tuple[LoopLayout, DeviceSlots] | None = None
        self._in_memory: set[DeviceSlots] = set()
        # Runs before the GPU's own exit handler: networks crash when their GPU has been closed.
        self._at_exit = functools.partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)

    @property
    def notes(self) -> tuple[str, ...]:
        """Whether slots were halved."""
        if self.slots == self._requested_slots:
            return ()
        requested = self._requested_slots
        return (f"the GPU's memory does not hold {requested} slots: {self.slots} were used",)

    @property
    def denoiser(self) -> Denoiser:
        return self._host

    def run(
        self, recipe: Recipe, slices: Iterable[Slice | None], cancelled: Cancelled = never
    ) -> Iterator[tuple[Slice, SliceCurves]]:
        """Take every slice through the process on the GPU; of maps at a multiple of t_e, which need
        every step's map, only the network."""
        if recipe.rule.t_e_ratio != 1:
            yield from NumpyBackend(self._host, self.slots).run(recipe, slices, cancelled)
            return
        layout = LoopLayout(recipe, self._channels, self._size)
        slots = self._take_slots(layout)
        try:
            yield from run(slots, slices, cancelled)
        finally:
            self._give_back(layout, slots)

    def _take_slots(self, layout: LoopLayout) -> DeviceSlots:
        """The slots of the last run if their layout is the same, or new ones, as many as fit."""
        idle, self._idle = self._idle, None
        if idle and idle[0] == layout:
            return idle[1]
        if idle:
            self._drop(idle[1])
        while True:
            try:
                slots = DeviceSlots(self.gpu, self.network, layout, self.slots)
            except DeviceMemoryError:
                if self.slots == 1 or self._in_memory:
                    raise
                self._unbind()
                self.slots //= 2
            else:
                self._in_memory.add(slots)
                return slots

    def _give_back(self, layout: LoopLayout, slots: DeviceSlots) -> None:
        if slots not in self._in_memory or self.gpu.lost:  # closed meanwhile, or failed
            return
        slots.clear()
        if self._idle:  # of a run that was interleaved with this one
            self._drop(self._idle[1])
        self._idle = (layout, slots)

    def _drop(self, slots: DeviceSlots) -> None:
        slots.state.free()
        self._in_memory.remove(slots)
        if not self._in_memory:
            self._unbind()

    def _unbind(self) -> None:
        self._host.free()
        self.network.release()

    def release(self) -> None:
        """Free the memory of the slots; it is allocated again when needed."""
        idle, self._idle = self._idle, None
        if idle:
            self._drop(idle[1])
        if not self._in_memory:
            self._unbind()

    def close(self) -> None:
        """Give the network and the GPU back; a second time does nothing."""
        atexit.unregister(self._at_exit)
        if not self.gpu.lost:
            self.gpu.wait()
        self._idle = None
        for slots in list(self._in_memory):
            self._drop(slots)
        self._unbind()
        self.network.close()
        self.gpu.close()


def _close_if_alive(backend: weakref.ref[GpuBackend]) -> None:
    alive = backend()
    if alive:
        alive.close()
