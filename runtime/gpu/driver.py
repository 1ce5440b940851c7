"""Is there a GPU? Asked of the NVIDIA driver itself: some packages crash where there is none."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from ..errors import DeviceError

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
        known = ", ".join(f"cuda:{i}" for i in range(count.value)) or "none"
        raise DeviceError(f"there is no GPU {index}: this machine has {known}")
    return f"{version[0]}.{version[1]}"
