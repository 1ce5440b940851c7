"""What a loop of slots has in the GPU's memory, and a step that works on it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

from .device import Array, Gpu
from .kernels import KERNELS, THREADS, compile_kernels
from .layout import LOOP, POINTERS, SLOT, LoopLayout
from .network import DeviceNetwork, Tensors


class SlotState:
    """The state of a loop: of constant size, however many steps a slice takes.

    ``x0``: (slots, C, H, W) float32; ``slots``: who is in each, (slots,) of
    :data:`anofpdm.runtime.backends.cuda.layout.SLOT`; ``reports``: (slots, 3 K + 1) float64, of the last
    step: M_t, MSE_h, MSE_0 of the K scored modalities, and what happened; ``H``: (slots, K, H,
    W) float32, the anomaly map.

    ``tensors``: what goes into the network and comes out; ``launches``: a step of the first slots
    by their number, as one call: the network between the kernels of ``kernels.cu``, captured as a
    CUDA graph where the network allows.

    Raises
    ------
    DeviceMemoryError
        If the GPU has too little memory for so many slots; then nothing of it is kept.
    """

    def __init__(self, gpu: Gpu, network: DeviceNetwork, layout: LoopLayout, slots: int) -> None:
        self._gpu, self._layout, self._slots = gpu, layout, slots
        self._held: dict[str, Array] = {}
        self.launches: dict[int, Callable[[], None]] = {}
        try:
            self._allocate(network.widths(slots)[-1])
            gpu.load_kernels(compile_kernels, KERNELS)
            # The widest first: what it needs is enough for the others.
            for width in reversed(network.widths(slots)):
                self.launches[width] = self._ready(network, width)
        except BaseException:
            self.free()
            raise
        self.x0, self.slots, self.reports, self.H = (
            self._held[name] for name in ("x0", "slots", "reports", "H")
        )

    def _allocate(self, batch: int) -> None:
        layout, held, slots = self._layout, self._held, self._slots
        size, K = (layout.size, layout.size), len(layout.recipe.scored)
        self.tensors = Tensors.allocate(self._gpu, batch, layout.channels, layout.size)
        held |= vars(self.tensors)
        held["x0"] = self._array((slots, layout.channels, *size))
        for name in ("sum", "H"):
            held[name] = self._array((slots, K, *size))
        held["best"] = self._array((slots, K), np.float64)
        held["slots"] = self._array((slots,), SLOT)
        held["reports"] = self._array((slots, 3 * K + 1), np.float64)
        for name, table in layout.tables().items():
            held[name] = self._array(table.shape, table.dtype)
            self._gpu.send(table, held[name])
        held["loop"] = self._array((1,), LOOP)
        self._gpu.send(self._description(), held["loop"])

    def _array(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        return self._gpu.array(shape, dtype)

    def _description(self) -> np.ndarray:
        """The struct Loop of ``kernels.cu``."""
        loop = np.zeros(1, LOOP)
        for name, value in self._layout.numbers().items():
            loop[name] = value
        for name in POINTERS:
            loop[name] = self._held[name].address if name in self._held else 0
        return loop

    def _ready(self, network: DeviceNetwork, width: int) -> Callable[[], None]:
        """A step of the first ``width`` slots, run once to warm up: nobody is in them yet."""
        gpu, loop = self._gpu, self._held["loop"]
        predict = network.bind(self.tensors, width)
        blocks = (self._layout.channels, min(width, self._slots))

        def step() -> None:
            gpu.launch("enter", blocks, THREADS, loop)
            predict()
            gpu.launch("update", blocks, THREADS, loop)
            gpu.launch("advance", (1, blocks[1]), 1, loop)

        step()
        gpu.wait()
        return gpu.capture(step) if network.capturable else step

    def free(self) -> None:
        """Give everything back; a second time does nothing."""
        self.launches.clear()
        for array in self._held.values():
            array.free()
