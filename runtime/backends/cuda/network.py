"""The network as the device loop sees it: predictions for all slots, in the GPU's memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError, DeviceMemoryError
from ..base import BROKEN_NETWORK
from .device import Array, Gpu

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Tensors:
    """The network's inputs and outputs in the GPU's memory; a batch of n is the first n slots."""

    x_t: Array  # (slots, C, H, W) float32
    t: Array  # (slots,) int64, 0-based
    eps_healthy: Array  # (slots, C, H, W) float32
    eps_null: Array  # (slots, C, H, W) float32

    @classmethod
    def allocate(cls, gpu: Gpu, slots: int, channels: int, size: int) -> "Tensors":
        """Memory for so many slots, zeroed."""
        shape = (slots, channels, size, size)
        x_t, healthy, null = (gpu.array(shape, np.float32) for _ in range(3))
        return cls(x_t, gpu.array((slots,), np.int64), healthy, null)

    def free(self) -> None:
        """Give the memory back."""
        for array in (self.x_t, self.t, self.eps_healthy, self.eps_null):
            array.free()


class DeviceNetwork(Protocol):
    """Predicts the noise with both labels, on a GPU.

    ``capturable``: whether its work can be captured in a CUDA graph; ``longest``: the most slots
    that it takes, None for any number.
    """

    @property
    def capturable(self) -> bool: ...
    @property
    def longest(self) -> int | None: ...

    def widths(self, slots: int) -> tuple[int, ...]:
        """The batch sizes to use for so many slots: ascending, the last at least that."""
        ...

    def bind(self, tensors: Tensors, width: int) -> Callable[[], None]:
        """Get ready for batches of this size in this memory, which is slow.

        Returns
        -------
        What asks for the predictions for the first ``width`` slots, on the GPU's stream

        Raises
        ------
        DeviceMemoryError
            If the GPU has too little memory for it.
        """
        ...

    def release(self) -> None:
        """Give the memory of all bindings back, after which none may be used."""
        ...

    def close(self) -> None:
        """Give everything back; a second time does nothing."""
        ...


class HostDenoiser:
    """A network on a GPU as a :class:`anofpdm.runtime.backends.base.Denoiser` of the host's arrays.

    For calibrations and ablations, which accumulate every step on the host.
    """

    def __init__(self, gpu: Gpu, network: DeviceNetwork, slots: int) -> None:
        self._gpu, self._network, self._slots = gpu, network, slots
        self._tensors: Tensors | None = None
        self._batches: dict[int, Callable[[], None]] = {}

    def __call__(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        """In batches of at most ``slots``, each awaited."""
        gpu, eps = self._gpu, (np.empty_like(x_t), np.empty_like(x_t))
        tensors = self._bound(*x_t.shape[1:3])
        for first in range(0, len(x_t), self._slots):
            part = slice(first, first + self._slots)
            count = len(x_t[part])
            gpu.send(x_t[part].astype(np.float32), tensors.x_t[:count])
            gpu.send((t[part] - 1).astype(np.int64), tensors.t[:count])
            self._batches[min(width for width in self._batches if width >= count)]()
            gpu.download(tensors.eps_healthy[:count], eps[0][part])
            gpu.download(tensors.eps_null[:count], eps[1][part])
            gpu.wait()
        if not (np.isfinite(eps[0]).all() and np.isfinite(eps[1]).all()):
            raise BundleError(BROKEN_NETWORK)
        return eps

    def _bound(self, channels: int, size: int) -> Tensors:
        while self._tensors is None:
            widths = self._network.widths(self._slots)
            try:
                tensors = Tensors.allocate(self._gpu, widths[-1], channels, size)
                # The widest first: its memory is enough for the others.
                for width in reversed(widths):
                    self._batches[width] = self._network.bind(tensors, width)
                    self._batches[width]()
                self._gpu.wait()
                self._tensors = tensors
            except DeviceMemoryError:
                self._batches.clear()
                if self._slots == 1:
                    raise
                self._slots //= 2
        return self._tensors

    def free(self) -> None:
        """Give the memory back; it is allocated again when needed."""
        if self._tensors:
            self._tensors.free()
        self._tensors, self._batches = None, {}
