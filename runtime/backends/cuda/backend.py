"""The whole forward process on a GPU."""

from __future__ import annotations

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
    """See :class:`anofpdm.runtime.backends.base.Backend`.

    It owns the GPU and the network. ``channels``, ``size``: of the slices, (C, size, size);
    ``slots``: how many share the network's batch; halved, with a note, where memory is short.
    """

    precision = "fp32"

    def __init__(
        self, gpu: Gpu, network: DeviceNetwork, device: str, channels: int, size: int, slots: int
    ) -> None:
        if slots < 1:
            raise OptionsError(f"slots must be at least 1, not {slots}")
        self.gpu, self.network, self.device = gpu, network, device
        self._channels, self._size, self._asked, self.slots = channels, size, slots, slots
        self._host = HostDenoiser(gpu, network, slots)
        self._idle: tuple[LoopLayout, DeviceSlots] | None = None
        self._loops: set[DeviceSlots] = set()
        # Before the GPU's own turn comes: networks crash when their GPU has been given back.
        self._at_exit = functools.partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)

    @property
    def notes(self) -> tuple[str, ...]:
        """See :class:`anofpdm.runtime.backends.base.Backend`."""
        if self.slots == self._asked:
            return ()
        return (f"the GPU's memory does not hold {self._asked} slots: {self.slots} were used",)

    @property
    def denoiser(self) -> Denoiser:
        """See :class:`anofpdm.runtime.backends.base.Backend`."""
        return self._host

    def run(
        self, recipe: Recipe, slices: Iterable[Slice | None], cancelled: Cancelled = never
    ) -> Iterator[tuple[Slice, SliceCurves]]:
        """See :class:`anofpdm.runtime.backends.base.Backend`.

        Maps at a multiple of t_e need every step's map: then only the network runs on
        the GPU.
        """
        if recipe.rule.t_e_ratio != 1:
            yield from NumpyBackend(self._host, self.slots).run(recipe, slices, cancelled)
            return
        layout = LoopLayout(recipe, self._channels, self._size)
        loop = self._take_slots(layout)
        try:
            yield from run(loop, slices, cancelled)
        finally:
            self._give_back(layout, loop)

    def _take_slots(self, layout: LoopLayout) -> DeviceSlots:
        """The loop that was used last if it fits, or a new one, with as many slots as fit."""
        idle, self._idle = self._idle, None
        if idle and idle[0] == layout:
            return idle[1]
        if idle:
            self._drop(idle[1])
        while True:
            try:
                loop = DeviceSlots(self.gpu, self.network, layout, self.slots)
            except DeviceMemoryError:
                if self.slots == 1 or self._loops:
                    raise
                self._unbind()
                self.slots //= 2
            else:
                self._loops.add(loop)
                return loop

    def _give_back(self, layout: LoopLayout, loop: DeviceSlots) -> None:
        if loop not in self._loops or self.gpu.lost:  # closed meanwhile, or failed
            return
        loop.clear()
        if self._idle:  # of a process that ran beside this one
            self._drop(self._idle[1])
        self._idle = (layout, loop)

    def _drop(self, loop: DeviceSlots) -> None:
        loop.state.free()
        self._loops.remove(loop)
        if not self._loops:
            self._unbind()

    def _unbind(self) -> None:
        self._host.free()
        self.network.release()

    def release(self) -> None:
        """Give the memory back that is for slots; it is taken again when needed."""
        idle, self._idle = self._idle, None
        if idle:
            self._drop(idle[1])
        if not self._loops:
            self._unbind()

    def close(self) -> None:
        """Give the network and the GPU back; a second time does nothing."""
        atexit.unregister(self._at_exit)
        if not self.gpu.lost:
            self.gpu.wait()
        self._idle = None
        for loop in list(self._loops):
            self._drop(loop)
        self._unbind()
        self.network.close()
        self.gpu.close()


def _close_if_alive(backend: weakref.ref[GpuBackend]) -> None:
    alive = backend()
    if alive:
        alive.close()
