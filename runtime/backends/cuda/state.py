"""The slots in the GPU's memory, and a step that works on them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

from .device import Array, Gpu
from .kernels import KERNELS, THREADS, compile_kernels
from .layout import LOOP, POINTERS, SLOT, LoopLayout
from .network import DeviceNetwork, Tensors


class SlotState:
    """The state of all slots: of constant size, however many steps a slice needs.

    Attributes
    ----------
    x0 : (slots, C, H, W) float32, the clean slices
    slots : (slots,) of :data:`anofpdm.runtime.backends.cuda.layout.SLOT`, the slice in each
    reports : (slots, 3 K + 1) float64, of the last step: M_t, MSE_h and MSE_0 of the K scored
        modalities, and how it ended
    H : (slots, K, H, W) float32, the anomaly maps
    tensors : the network's inputs and outputs
    launches : a step of the first slots, by their number, as one call: the network between the
        kernels of ``kernels.cu``, captured as a CUDA graph where the network allows

    Raises
    ------
    DeviceMemoryError
        If the GPU has too little memory for so many slots; then nothing of it is kept.
    """

    def __init__(self, gpu: Gpu, network: DeviceNetwork, layout: LoopLayout, slots: int) -> None:
        self._gpu, self._layout, self._slots = gpu, layout, slots
        self._arrays: dict[str, Array] = {}
        self.launches: dict[int, Callable[[], None]] = {}
        try:
            self._allocate(network.widths(slots)[-1])
            gpu.load_kernels(compile_kernels, KERNELS)
            # The widest first: its memory is enough for the others.
            for width in reversed(network.widths(slots)):
                self.launches[width] = self._ready(network, width)
        except BaseException:
            self.free()
            raise
        self.x0, self.slots, self.reports, self.H = (
            self._arrays[name] for name in ("x0", "slots", "reports", "H")
        )

    def _allocate(self, batch: int) -> None:
        layout, arrays, slots = self._layout, self._arrays, self._slots
        size, K = (layout.size, layout.size), len(layout.recipe.scored)
        self.tensors = Tensors.allocate(self._gpu, batch, layout.channels, layout.size)
        arrays |= vars(self.tensors)
        arrays["x0"] = self._array((slots, layout.channels, *size))
        for name in ("sum", "H"):
            arrays[name] = self._array((slots, K, *size))
        arrays["best"] = self._array((slots, K), np.float64)
        arrays["slots"] = self._array((slots,), SLOT)
        arrays["reports"] = self._array((slots, 3 * K + 1), np.float64)
        for name, table in layout.tables().items():
            arrays[name] = self._array(table.shape, table.dtype)
            self._gpu.send(table, arrays[name])
        arrays["loop"] = self._array((1,), LOOP)
        self._gpu.send(self._description(), arrays["loop"])

    def _array(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
        return self._gpu.array(shape, dtype)

    def _description(self) -> np.ndarray:
        """The struct Loop of ``kernels.cu``."""
        loop = np.zeros(1, LOOP)
        for name, value in self._layout.numbers().items():
            loop[name] = value
        for name in POINTERS:
            loop[name] = self._arrays[name].address if name in self._arrays else 0
        return loop

    def _ready(self, network: DeviceNetwork, width: int) -> Callable[[], None]:
        """A step of the first ``width`` slots, run once to warm up: they are empty."""
        gpu, loop = self._gpu, self._arrays["loop"]
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
        for array in self._arrays.values():
            array.free()
