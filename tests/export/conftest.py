"""What tests of engines share."""

import platform
import sys

import pytest

from anofpdm.runtime.bundle.engines import load_tensorrt


@pytest.fixture(scope="module")
def trt():
    """TensorRT-RTX, whose parser and builder need no GPU."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the extra test has TensorRT-RTX on x86-64 Linux only")
    return load_tensorrt("tensorrt_rtx")
