"""Compile ``kernels.cu`` for a GPU, with NVRTC: no toolkit and no compiler has to be installed."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from ..errors import DeviceError
from ..extras import require
from .layout import ROW

KERNELS = ("enter", "update", "advance")
THREADS = 512


def source() -> str:
    """The kernels' source."""
    return resources.files(__package__).joinpath("kernels.cu").read_text(encoding="utf-8")


def definitions(threads: int) -> list[str]:
    """What the source needs to be told, as compiler options."""
    return [f"-DTHREADS={threads}", f"-DROW_BYTES={ROW.itemsize}"]


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

    def call(function: Any, *arguments: Any) -> Any:
        result, *values = function(*arguments)
        if int(result):
            reason = f"{function.__name__}: {result.name}"
            raise DeviceError(f"the GPU kernels do not compile ({reason}): use --device cpu")
        return values[0] if values else None

    options = [
        f"--gpu-architecture=sm_{compute_capability.replace('.', '')}",
        "--fmad=false",  # rounds as NumPy does
        *definitions(THREADS),
    ]
    program = call(nvrtc.nvrtcCreateProgram, source().encode(), b"kernels.cu", 0, [], [])
    call(nvrtc.nvrtcCompileProgram, program, len(options), [option.encode() for option in options])
    binary = bytes(call(nvrtc.nvrtcGetCUBINSize, program))
    call(nvrtc.nvrtcGetCUBIN, program, binary)
    call(nvrtc.nvrtcDestroyProgram, program)
    return binary
