"""A GPU: the driver is asked whether there is one; calls are checked, views borrow, arrays own.

One GPU, one stream: work is done in the order of the calls, later, and the host goes on meanwhile.
"""

import atexit
import ctypes
import functools
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...errors import QUOTED, DeviceError, DeviceMemoryError, OptionsError, one_line
from ...util.optional import require

# What the packages of the gpu extra are built with.
_CUDA = (13, 0)
_NO_DEVICE = 100


def load_driver() -> Any:
    """The driver's library.

    Raises
    ------
    DeviceError
        If it is not there.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise DeviceError(
            f"no NVIDIA driver ({name} cannot be loaded): install one where there is a GPU"
        ) from error


def gpu_is_present() -> bool:
    """Whether an NVIDIA driver finds a GPU, usable or not."""
    try:
        driver, count = load_driver(), ctypes.c_int()
    except DeviceError:
        return False
    return (
        not driver.cuInit(0)
        and not driver.cuDeviceGetCount(ctypes.byref(count))
        and count.value > 0
    )


def check_driver(index: int = 0, driver: Any = None) -> str:
    """See that there is a GPU of this number and a driver for it.

    Parameters
    ----------
    driver : the driver's library; None loads it

    Returns
    -------
    The CUDA version that the driver supports, ``13.0``

    Raises
    ------
    DeviceError
        If there is none, or the driver is too old.
    """
    driver = driver or load_driver()
    failed = driver.cuInit(0)
    if failed == _NO_DEVICE:
        raise DeviceError("the NVIDIA driver finds no GPU: see what nvidia-smi says")
    if failed:
        raise DeviceError(f"the NVIDIA driver does not start (error {failed}): reinstall it")
    number, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(number))
    driver.cuDeviceGetCount(ctypes.byref(count))
    version = (number.value // 1000, number.value % 1000 // 10)
    if version < _CUDA:
        raise DeviceError(
            f"the NVIDIA driver supports CUDA {version[0]}.{version[1]}, {_CUDA[0]}.{_CUDA[1]} is "
            "needed: update the driver"
        )
    if index >= count.value:
        present = ", ".join(f"cuda:{i}" for i in range(count.value)) or "none"
        raise DeviceError(f"there is no GPU {index}: this machine has {present}")
    return f"{version[0]}.{version[1]}"


_FAILED = "the GPU failed ({reason}): nothing was written; try again, or use --device cpu"
_OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
_NON_BLOCKING = 1


def short_of_memory() -> DeviceMemoryError:
    """What is said where the GPU's memory does not suffice."""
    return DeviceMemoryError(
        "the GPU has too little free memory: use fewer slots (--slots), or --device cpu"
    )


def check_call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of cuda-bindings gives; its error is raised as one of ours."""
    result, *values = function(*arguments)
    if result.name == _OUT_OF_MEMORY:  # not its number, which means something else to NVRTC
        raise short_of_memory()
    if int(result):
        raise DeviceError(_FAILED.format(reason=f"{function.__name__}: {result.name}"))
    return values[0] if values else None


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

    def __getitem__(self, index: int | slice) -> "View":
        """One element along the first axis, or the first few: ``view[3]``, ``view[:3]``."""
        stride = self.nbytes // self.shape[0]
        if isinstance(index, slice):
            assert (index.start, index.step) == (None, None)
            assert 0 < index.stop <= self.shape[0]
            return View(self.address, (index.stop, *self.shape[1:]), self.dtype)
        assert 0 <= index < self.shape[0]
        return View(self.address + index * stride, self.shape[1:], self.dtype)


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
        self._bindings = require("cuda.bindings.driver", "gpu")
        self._arrays: weakref.WeakSet[Array] = weakref.WeakSet()
        self._kernels: dict[str, Any] = {}
        self._thread, self.index = threading.get_ident(), index
        try:
            self._cuda.init()
            device = self._cuda.Device(index)
            self.name = str(device.name())
            self.compute_capability = ".".join(str(part) for part in device.compute_capability())
            # The primary context is the one that TensorRT and ONNX Runtime use.
            self._context: Any = device.retain_primary_context()
        except self._cuda.Error as error:
            raise DeviceError(_FAILED.format(reason=one_line(error, QUOTED))) from error
        with self.current():
            # Non-blocking: nothing else that happens on the GPU waits for it, or makes it wait.
            self._stream = self._cuda.Stream(_NON_BLOCKING)
        self.stream = int(self._stream.handle)
        self._at_exit = functools.partial(_close, weakref.ref(self))
        atexit.register(self._at_exit)

    @contextmanager
    def current(self) -> Iterator[None]:
        """The GPU's context, which calls to its libraries need; their errors become ours.

        It is not left current: what else the thread does with CUDA is not disturbed.
        """
        if threading.get_ident() != self._thread:
            raise OptionsError(
                "a GPU belongs to the thread that opened it: load a Segmenter in this thread"
            )
        if self.lost:
            raise DeviceError("the GPU has been given back: load the Segmenter again")
        cuda = self._cuda
        self._context.push()
        try:
            yield
        except cuda.MemoryError as error:
            raise short_of_memory() from error
        except cuda.Error as error:
            self._give_back()  # nothing works in a context after an error
            raise DeviceError(_FAILED.format(reason=one_line(error, QUOTED))) from error
        finally:
            if not self.lost:
                cuda.Context.pop()

    @property
    def lost(self) -> bool:
        """Whether it has failed, or been closed."""
        return self._context is None

    def close(self) -> None:
        """Give everything back; a second time does nothing."""
        if self.lost:
            return
        atexit.unregister(self._at_exit)
        for array in list(self._arrays):
            array.free()
        self._kernels, self._stream = {}, None
        self._context.push()
        self._give_back()

    def _give_back(self) -> None:
        """Release the context, which is current. What is freed later is freed with it, silently."""
        context, self._context = self._context, None
        # Its destructor would release it in the wrong way; and detaching leaves it current.
        context.detach()
        self._bindings.cuCtxPopCurrent()

    def __enter__(self) -> "Gpu":
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
        with self.current():
            made = Array(self._cuda.mem_alloc(math.prod(shape) * kind.itemsize), shape, kind)
            self._cuda.memset_d8_async(made.address, 0, made.nbytes, self._stream)
        self._arrays.add(made)
        return made

    def page_locked(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of the host from and to which copies do not hold the host up."""
        with self.current():
            made: NDArray[Any] = self._cuda.pagelocked_empty(shape, np.dtype(dtype))
        return made

    def upload(self, source: NDArray[Any], target: View) -> None:
        """Copy from page-locked memory to the GPU; it must not change until that is done."""
        assert source.nbytes == target.nbytes
        assert source.flags.c_contiguous
        with self.current():
            self._cuda.memcpy_htod_async(target.address, source, self._stream)

    def send(self, source: NDArray[Any], target: View) -> None:
        """Copy from any memory to the GPU, and wait until that is done."""
        self.upload(np.ascontiguousarray(source), target)
        self.wait()

    def download(self, source: View, target: NDArray[Any]) -> None:
        """Copy from the GPU; a page-locked target must not be read until that is done."""
        assert source.nbytes == target.nbytes
        assert target.flags.c_contiguous
        with self.current():
            self._cuda.memcpy_dtoh_async(target, source.address, self._stream)

    def event(self, timed: bool = False) -> "Event":
        """A mark behind everything that was asked for so far."""
        with self.current():
            mark = self._cuda.Event(0 if timed else self._cuda.event_flags.DISABLE_TIMING)
            mark.record(self._stream)
        return Event(self, mark)

    def wait(self) -> None:
        """Until everything that was asked for is done."""
        with self.current():
            self._stream.synchronize()

    def load_kernels(self, compiled: Callable[[str], bytes], names: tuple[str, ...]) -> None:
        """Make kernels known to :meth:`launch`; each takes one pointer.

        ``compiled`` gives their machine code for a compute capability.
        """
        if set(names) <= self._kernels.keys():  # loaded already, and perhaps part of a graph
            return
        binary = compiled(self.compute_capability)
        with self.current():
            module = self._cuda.module_from_buffer(binary)
            for name in names:
                function = module.get_function(name)
                function.prepare("P")
                self._kernels[name] = (function, module)

    def launch(self, name: str, blocks: tuple[int, int], threads: int, argument: View) -> None:
        """Run a kernel on ``blocks`` blocks of so many threads."""
        function, _ = self._kernels[name]
        with self.current():
            function.prepared_async_call(blocks, (threads, 1, 1), self._stream, argument.address)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What ``work`` asks for on the stream, without doing it: as one launch, a CUDA graph."""
        cuda, stream = self._bindings, self._bindings.CUstream(self.stream)
        relaxed = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        with self.current():
            check_call(cuda.cuStreamBeginCapture, stream, relaxed)
            try:
                work()
            except BaseException:
                cuda.cuStreamEndCapture(stream)  # would otherwise be unusable
                raise
            recorded = check_call(cuda.cuStreamEndCapture, stream)
            graph = check_call(cuda.cuGraphInstantiate, recorded, 0)
            check_call(cuda.cuGraphDestroy, recorded)

        def launch() -> None:
            with self.current():
                check_call(cuda.cuGraphLaunch, graph, stream)

        # A graph that outlives its GPU went with it.
        weakref.finalize(launch, lambda: self.lost or cuda.cuGraphExecDestroy(graph)).atexit = False
        return launch

    def memory_mib(self) -> tuple[float, float]:
        """Free and in all."""
        with self.current():
            free, total = self._cuda.mem_get_info()
        return free / 2**20, total / 2**20


class Event:
    """A mark in the stream: done when everything asked for before it is."""

    def __init__(self, gpu: Gpu, mark: Any) -> None:
        self._gpu, self._mark = gpu, mark

    def done(self) -> bool:
        """Whether everything before it is done."""
        with self._gpu.current():
            return bool(self._mark.query())

    def wait(self) -> None:
        """Until everything before it is done."""
        with self._gpu.current():
            self._mark.synchronize()

    def since_ms(self, earlier: "Event") -> float:
        """Time on the GPU from an earlier event; both made with ``timed``, and done."""
        with self._gpu.current():
            return float(self._mark.time_since(earlier._mark))


def _close(gpu: weakref.ref[Gpu]) -> None:
    alive = gpu()
    if alive:
        alive.close()
