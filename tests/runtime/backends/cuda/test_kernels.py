"""kernels.cu compiles, with the compilers that users have. What they compute: test_loop.py."""

import shutil
import subprocess

import pytest
from support import ROOT

from anofpdm.runtime.backends.cuda.kernels import KERNELS, THREADS, compile_kernels, definitions
from anofpdm.runtime.errors import DeviceError

SOURCE = ROOT / "runtime" / "backends" / "cuda" / "kernels.cu"


@pytest.mark.parametrize("compute_capability", ["7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0"])
def test_nvrtc_makes_machine_code(compute_capability):
    binary = compile_kernels(compute_capability)
    assert binary.startswith(b"\x7fELF")
    for name in KERNELS:
        assert f".text.{name}".encode() in binary


def test_an_unknown_gpu():
    with pytest.raises(
        DeviceError, match=r"nvrtcCompileProgram: NVRTC_ERROR_INVALID_OPTION.*--device cpu"
    ):
        compile_kernels("1.0")


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")
def test_nvcc_warns_of_nothing_and_spills_no_registers(tmp_path):
    command = ["nvcc", "-c", "-arch=sm_90", "-Xptxas", "-v", "-Werror", "all-warnings"]
    command += ["--fmad=false", *definitions(THREADS), str(SOURCE), "-o", str(tmp_path / "k.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(" 0 bytes spill stores, 0 bytes spill loads") >= len(KERNELS)
