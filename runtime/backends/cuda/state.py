"""What a row of slots has in the GPU's memory, and a step that works on it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

from .device import Array, Gpu
from .kernels import KERNELS, THREADS, compile_kernels
from .layout import POINTERS, ROW, SLOT, Plan
from .network import DeviceNetwork, Tensors


class RowState:
    """The state of a row: of constant size, however many steps a slice takes.

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

    def __init__(self, gpu: Gpu, network: DeviceNetwork, plan: Plan, slots: int) -> None:
        self._gpu, self._plan, self._slots = gpu, plan, slots
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
        plan, held, slots = self._plan, self._held, self._slots
        size, K = (plan.size, plan.size), len(plan.recipe.scored)
        self.tensors = Tensors.allocate(self._gpu, batch, plan.channels, plan.size)
        held |= vars(self.tensors)
        held["x0"] = self._array((slots, plan.channels, *size))
        for name in ("sum", "H"):
            held[name] = self._array((slots, K, *size))
        held["best"] = self._array((slots, K), np.float64)
        held["slots"] = self._array((slots,), SLOT)
        held["reports"] = self._array((slots, 3 * K + 1), np.float64)
        for name, table in plan.tables().items():
            held[name] = self._array(table.shape, table.dtype)
            self._gpu.send(table, held[name])
        held["row"] = self._array((1,), ROW)
        self._gpu.send(self._description(), held["row"])

    def _array(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        return self._gpu.array(shape, dtype)

    def _description(self) -> np.ndarray:
        """The struct Row of ``kernels.cu``."""
        row = np.zeros(1, ROW)
        for name, value in self._plan.numbers().items():
            row[name] = value
        for name in POINTERS:
            row[name] = self._held[name].address if name in self._held else 0
        return row

    def _ready(self, network: DeviceNetwork, width: int) -> Callable[[], None]:
        """A step of the first ``width`` slots, run once to warm up: nobody is in them yet."""
        gpu, row = self._gpu, self._held["row"]
        predict = network.bind(self.tensors, width)
        blocks = (self._plan.channels, min(width, self._slots))

        def step() -> None:
            gpu.launch("enter", blocks, THREADS, row)
            predict()
            gpu.launch("update", blocks, THREADS, row)
            gpu.launch("advance", (1, blocks[1]), 1, row)

        step()
        gpu.wait()
        return gpu.capture(step) if network.capturable else step

    def free(self) -> None:
        """Give everything back; a second time does nothing."""
        self.launches.clear()
        for array in self._held.values():
            array.free()
