"""pycuda in three ideas: calls that are checked, views that borrow, arrays that own.

One GPU, one stream: what is asked for is done in that order, later, and the host goes on meanwhile.
"""

from __future__ import annotations

import atexit
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import DeviceError, DeviceMemoryError, SetupError
from ..extras import require
from .driver import check_driver

_GONE = "the GPU failed ({reason}): nothing was written; try again, or use --device cpu"


@dataclass(frozen=True, eq=False)
class View:
    """Memory of a GPU that somebody else owns: an address, and what lies there."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: int | slice) -> View:
        """One row, or the first rows: ``view[3]``, ``view[:3]``."""
        row = self.nbytes // self.shape[0]
        if isinstance(index, slice):
            assert (index.start, index.step) == (None, None)
            assert 0 < index.stop <= self.shape[0]
            return View(self.address, (index.stop, *self.shape[1:]), self.dtype)
        assert 0 <= index < self.shape[0]
        return View(self.address + index * row, self.shape[1:], self.dtype)


class Array(View):
    """Memory of a GPU that is freed with this object, or with the GPU's :meth:`Gpu.close`."""

    def __init__(self, allocation: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        super().__init__(int(allocation), shape, dtype)
        object.__setattr__(self, "_allocation", allocation)

    def free(self) -> None:
        """Give the memory back; a second time does nothing."""
        object.__setattr__(self, "_allocation", None)


class Gpu:
    """A GPU and one stream on it.

    It belongs to the thread that opened it. ``stream``: the stream's handle; ``name``,
    ``compute_capability`` (``9.0``) and ``driver`` (the CUDA version that the driver supports).

    Raises
    ------
    DeviceError
        If there is no such GPU, no driver, or one that is too old.
    MissingExtraError
        If pycuda is not installed.
    """

    def __init__(self, index: int = 0) -> None:
        self.driver = check_driver(index)
        self._cuda = require("pycuda.driver", "gpu")
        self._arrays: weakref.WeakSet[Array] = weakref.WeakSet()
        self._kernels: dict[str, Any] = {}
        self.index, self._context, self._thread = index, None, threading.get_ident()
        with self._checked():
            self._cuda.init()
            device = self._cuda.Device(index)
            self.name = str(device.name())
            self.compute_capability = ".".join(str(part) for part in device.compute_capability())
            # The primary context is the one that TensorRT and ONNX Runtime use.
            self._context = device.retain_primary_context()
            self._context.push()
            self._stream = self._cuda.Stream()
        self.stream = int(self._stream.handle)
        atexit.register(self.close)

    def close(self) -> None:
        """Give everything back; a second time does nothing."""
        if self._context is None:
            return
        atexit.unregister(self.close)
        for array in list(self._arrays):
            array.free()
        self._kernels, self._stream = {}, None
        self._context.detach()  # its destructor would release it in the wrong way
        self._context = None

    def __enter__(self) -> Gpu:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Memory of the GPU, zeroed.

        Raises
        ------
        DeviceMemoryError
            If there is too little.
        """
        kind = np.dtype(dtype)
        with self._checked():
            made = Array(self._cuda.mem_alloc(math.prod(shape) * kind.itemsize), shape, kind)
            self._cuda.memset_d8_async(made.address, 0, made.nbytes, self._stream)
        self._arrays.add(made)
        return made

    def page_locked(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of the host from and to which copies do not hold the host up."""
        with self._checked():
            made: NDArray[Any] = self._cuda.pagelocked_empty(shape, np.dtype(dtype))
        return made

    def upload(self, source: NDArray[Any], target: View) -> None:
        """Copy to the GPU; a page-locked source must not change until that is done."""
        assert source.nbytes == target.nbytes
        assert source.flags.c_contiguous
        with self._checked():
            self._cuda.memcpy_htod_async(target.address, source, self._stream)

    def download(self, source: View, target: NDArray[Any]) -> None:
        """Copy from the GPU; a page-locked target must not be read until that is done."""
        assert source.nbytes == target.nbytes
        assert target.flags.c_contiguous
        with self._checked():
            self._cuda.memcpy_dtoh_async(target, source.address, self._stream)

    def event(self, timed: bool = False) -> Event:
        """A mark behind everything that was asked for so far."""
        with self._checked():
            mark = self._cuda.Event(0 if timed else self._cuda.event_flags.DISABLE_TIMING)
            mark.record(self._stream)
        return Event(self, mark)

    def wait(self) -> None:
        """Until everything that was asked for is done."""
        with self._checked():
            self._stream.synchronize()

    def load_kernels(self, compiled: Callable[[str], bytes], names: tuple[str, ...]) -> None:
        """Make kernels known to :meth:`launch`; each takes one pointer.

        ``compiled`` gives their machine code for a compute capability.
        """
        binary = compiled(self.compute_capability)
        with self._checked():
            module = self._cuda.module_from_buffer(binary)
            for name in names:
                function = module.get_function(name)
                function.prepare("P")
                self._kernels[name] = (function, module)

    def launch(self, name: str, blocks: tuple[int, int], threads: int, argument: View) -> None:
        """Run a kernel on ``blocks`` blocks of so many threads."""
        function, _ = self._kernels[name]
        with self._checked():
            function.prepared_async_call(blocks, (threads, 1, 1), self._stream, argument.address)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What ``work`` asks for on the stream, without doing it: as one launch, a CUDA graph."""
        cuda = require("cuda.bindings.driver", "gpu")

        def call(function: Callable[..., Any], *arguments: Any) -> Any:
            result, *values = function(*arguments)
            if int(result):
                raise DeviceError(_GONE.format(reason=f"{function.__name__}: {result.name}"))
            return values[0] if values else None

        stream = cuda.CUstream(self.stream)
        call(cuda.cuStreamBeginCapture, stream,
             cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)  # fmt: skip
        try:
            work()
        finally:
            # Also after an error, which would otherwise leave the stream unusable.
            ended, recorded = cuda.cuStreamEndCapture(stream)
        if int(ended):
            raise DeviceError(_GONE.format(reason=f"cuStreamEndCapture: {ended.name}"))
        graph = call(cuda.cuGraphInstantiate, recorded, 0)
        call(cuda.cuGraphDestroy, recorded)
        return _Graph(lambda: call(cuda.cuGraphLaunch, graph, stream),
                      lambda: cuda.cuGraphExecDestroy(graph))  # fmt: skip

    def memory_mib(self) -> tuple[float, float]:
        """Free and in all."""
        with self._checked():
            free, total = self._cuda.mem_get_info()
        return free / 2**20, total / 2**20

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """Turn what pycuda raises into what a user can mend."""
        cuda = self._cuda
        if threading.get_ident() != self._thread:
            raise SetupError("a GPU belongs to the thread that opened it: load a Segmenter in this "
                             "thread")  # fmt: skip
        try:
            yield
        except cuda.MemoryError as error:
            raise DeviceMemoryError(
                "the GPU has too little free memory: use fewer slots (--slots), or --device cpu"
            ) from error
        except cuda.Error as error:
            raise DeviceError(_GONE.format(reason=str(error).strip())) from error


class Event:
    """See :meth:`Gpu.event`."""

    def __init__(self, gpu: Gpu, mark: Any) -> None:
        self._gpu, self._mark = gpu, mark

    def done(self) -> bool:
        """Whether everything before it is done."""
        with self._gpu._checked():
            return bool(self._mark.query())

    def wait(self) -> None:
        """Until everything before it is done."""
        with self._gpu._checked():
            self._mark.synchronize()

    def since_ms(self, earlier: Event) -> float:
        """Time on the GPU from an earlier event; both made with ``timed``, and done."""
        with self._gpu._checked():
            return float(self._mark.time_since(earlier._mark))


class _Graph:
    """A captured CUDA graph."""

    def __init__(self, launch: Callable[[], None], destroy: Callable[[], object]) -> None:
        self._launch = launch
        weakref.finalize(self, destroy).atexit = False

    def __call__(self) -> None:
        self._launch()
