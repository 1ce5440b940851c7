"""Compile ``kernels.cu`` for a GPU, with NVRTC: where it runs, no compiler has to be there."""

import functools
from importlib import resources

from ...util.optional import require
from .device import check_call
from .layout import LOOP

KERNELS = ("enter", "update", "advance")
THREADS = 512


def source() -> str:
    """The kernels' source."""
    return resources.files(__package__).joinpath("kernels.cu").read_text(encoding="utf-8")


def definitions(threads: int) -> list[str]:
    """The preprocessor definitions that the source needs, as compiler options."""
    return [f"-DTHREADS={threads}", f"-DLOOP_BYTES={LOOP.itemsize}"]


@functools.cache
def compile_kernels(compute_capability: str) -> bytes:
    """Machine code for GPUs of a compute capability such as ``9.0``.

    Raises
    ------
    DeviceError
        If it does not compile.
    MissingExtraError
        If NVRTC is not installed.
    """
    nvrtc = require("cuda.bindings.nvrtc", "gpu")

    options = [
        f"--gpu-architecture=sm_{compute_capability.replace('.', '')}",
        "--fmad=false",  # rounds as NumPy does
        *definitions(THREADS),
    ]
    program = check_call(nvrtc.nvrtcCreateProgram, source().encode(), b"kernels.cu", 0, [], [])
    check_call(
        nvrtc.nvrtcCompileProgram, program, len(options), [option.encode() for option in options]
    )
    binary = bytes(check_call(nvrtc.nvrtcGetCUBINSize, program))
    check_call(nvrtc.nvrtcGetCUBIN, program, binary)
    check_call(nvrtc.nvrtcDestroyProgram, program)
    return binary
