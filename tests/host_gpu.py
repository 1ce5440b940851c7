"""A GPU made of the host: its memory is NumPy's, its kernels are kernels.cu compiled for the host,
and its stream does nothing before somebody waits, so that what is read too early is wrong."""

import contextlib
import ctypes
import math
import subprocess
import tempfile
import weakref
from collections import deque
from functools import cache

import numpy as np
import pytest
from support import ROOT

from anofpdm.runtime.backends.cpu import numpy_loop
from anofpdm.runtime.backends.cuda.backend import GpuBackend
from anofpdm.runtime.backends.cuda.device import Array
from anofpdm.runtime.backends.cuda.kernels import THREADS, definitions
from anofpdm.runtime.errors import DeviceMemoryError


@cache
def host_kernels(threads):
    """kernels.cu as a library of the host."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["g++", "-std=c++20", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-pthread",
                   "-Wl,-Bsymbolic", "-Wall", "-Werror", *definitions(threads),
                   f"-I{ROOT / 'runtime/backends/cuda'}", str(ROOT / "tests/host_cuda.cpp"),
                   "-o", f"{folder}/kernels.so"]  # fmt: skip
        subprocess.run(command, check=True)
        library = ctypes.CDLL(f"{folder}/kernels.so")
    library.run.argtypes = [ctypes.c_char_p, *[ctypes.c_int] * 3, ctypes.c_void_p]
    library.noise.argtypes = [ctypes.c_uint64] * 2 + [ctypes.c_longlong] * 2 + [ctypes.c_void_p]
    return library


def kernel_noise(seed, key, t, shape):
    """The noise of kernels.cu; slice_noise but for the last bit of log, sin and cos, which NumPy
    computes in other ways on other CPUs."""
    count = math.prod(shape)
    noise = np.empty(-(-count // 4) * 4, np.float32)
    host_kernels(1).noise(seed, key, t, len(noise) // 4, noise.ctypes.data)
    return noise[:count].reshape(shape)


@contextlib.contextmanager
def same_noise():
    """The loop in NumPy with the noise of kernels.cu: then maps are the same to the last bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numpy_loop, "slice_noise", kernel_noise)
        yield


class Allocation:
    """Memory that is freed with the last reference to it."""

    def __init__(self, gpu, nbytes):
        self.memory = np.zeros(nbytes + 256, np.uint8)
        gpu.used += nbytes
        weakref.finalize(self, gpu.freed, nbytes)

    def __int__(self):
        return -(-self.memory.ctypes.data // 256) * 256


def memory(view):
    """What lies at a view, as an array that shares it."""
    raw = (ctypes.c_uint8 * view.nbytes).from_address(view.address)
    return np.frombuffer(raw, view.dtype).reshape(view.shape)


class HostGpu:
    """A stand-in for anofpdm.runtime.backends.cuda.device.Gpu.

    ``patience``: after how many queries of events the next piece of work is done; None: work is
    done only when somebody waits. ``nbytes``: of its memory.
    """

    name, compute_capability, driver, index, stream = "Host", "9.0", "13.0", 0, 0
    lost = False

    def __init__(self, patience=None, nbytes=2**31, threads=1):
        self.patience, self.nbytes, self.threads, self.used = patience, nbytes, threads, 0
        self.queries = 0
        self.launches = 0
        self.locked = []
        self.queue, self.captured = deque(), None

    def freed(self, nbytes):
        self.used -= nbytes

    def enqueue(self, work):
        (self.queue if self.captured is None else self.captured).append(work)

    def array(self, shape, dtype):
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        if self.used + nbytes > self.nbytes:
            raise DeviceMemoryError("too little memory")
        return Array(Allocation(self, nbytes), shape, dtype)

    def page_locked(self, shape, dtype):
        array = np.empty(shape, dtype)
        array.view(np.uint8)[...] = 0xFF
        self.locked.append(array)
        return array

    def is_locked(self, array):
        return any(np.may_share_memory(array, other) for other in self.locked)

    def upload(self, source, target):
        assert source.nbytes == target.nbytes
        assert self.is_locked(source)
        self.enqueue(lambda: memory(target).__setitem__(..., source.reshape(target.shape)))

    def send(self, source, target):
        assert (source.nbytes, source.dtype) == (target.nbytes, target.dtype)
        self.enqueue(lambda: memory(target).__setitem__(..., source.reshape(target.shape)))
        self.wait()

    def download(self, source, target):
        assert source.nbytes == target.nbytes
        target.view(np.uint8)[...] = 0xFF
        self.enqueue(lambda: target.__setitem__(..., memory(source).reshape(target.shape)))
        if not self.is_locked(target):
            self.wait()

    def event(self, timed=False):
        mark = HostEvent(self)
        self.enqueue(mark.reach)
        return mark

    def wait(self):
        while self.queue:
            self.queue.popleft()()

    @contextlib.contextmanager
    def current(self):
        yield

    def load_kernels(self, compiled, names):
        self.library = host_kernels(self.threads)

    def launch(self, name, blocks, threads, argument):
        assert threads in (THREADS, 1)
        threads = min(threads, self.threads)
        self.enqueue(lambda: self.library.run(name.encode(), *blocks, threads, argument.address))

    def capture(self, work):
        self.captured = []
        work()
        recorded, self.captured = self.captured, None

        def launch():
            self.launches += 1
            self.queue.extend(recorded)

        return launch

    def memory_mib(self):
        return (self.nbytes - self.used) / 2**20, self.nbytes / 2**20

    def close(self):
        self.lost = True


class HostEvent:
    def __init__(self, gpu):
        self.gpu, self.reached = gpu, False

    def reach(self):
        self.reached = True

    def done(self):
        self.gpu.queries += 1
        if self.gpu.patience and self.gpu.queries % self.gpu.patience == 0 and self.gpu.queue:
            self.gpu.queue.popleft()()
        return self.reached

    def wait(self):
        while not self.reached:
            self.gpu.queue.popleft()()

    def since_ms(self, earlier):
        assert self.reached
        assert earlier.reached
        return 2.0


class HostNetwork:
    """A function of arrays as a network on a HostGpu."""

    def __init__(self, gpu, function, capturable=True, nbytes=0, widths=None):
        self.gpu, self.function, self.capturable = gpu, function, capturable
        self.nbytes, self.known, self.bindings, self.longest = nbytes, widths, [], None

    def widths(self, slots):
        known = self.known or {1, slots}
        last = min(width for width in known if width >= slots)
        return tuple(sorted(width for width in known if width <= last))

    def bind(self, tensors, width):
        size = self.nbytes * width
        self.bindings.append(self.gpu.array((size,), np.uint8) if size else None)
        bindings = self.bindings

        def compute():
            assert bindings, "used after it was released"
            x_t, t = (memory(array[:width]) for array in (tensors.x_t, tensors.t))
            healthy, null = self.function(x_t.copy(), t + 1)
            memory(tensors.eps_healthy[:width])[...] = healthy
            memory(tensors.eps_null[:width])[...] = null

        return lambda: self.gpu.enqueue(compute)

    def release(self):
        self.bindings.clear()
        self.bindings = []

    def close(self):
        self.release()


def on_gpu(function, channels, size, slots=4, network=None, **gpu):
    """A backend whose GPU is the host; ``network``: options of HostNetwork, ``gpu``: of HostGpu."""
    host = HostGpu(**gpu)
    bound = HostNetwork(host, function, **network or {})
    return GpuBackend(host, bound, "host", channels, size, slots)
