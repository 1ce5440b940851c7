"""On a real GPU: both networks in the device loop against the FP32 network on the CPU, and the
commands. Without one, tests/runtime/test_gpu_row.py runs the same loop on the host."""

import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from support import ROOT

from anofpdm.export.main import main as export
from anofpdm.export.parity import FP16_TOLERANCE, FP32_TOLERANCE, Trial, compare
from anofpdm.runtime.backend import HostBackend
from anofpdm.runtime.bundle import DEFAULT, open_bundle
from anofpdm.runtime.denoiser import OnnxDenoiser
from anofpdm.runtime.device import open_device
from anofpdm.runtime.errors import DeviceMemoryError
from anofpdm.runtime.gpu.cuda import Gpu
from anofpdm.runtime.gpu.driver import check_driver
from anofpdm.runtime.infer import main as infer


def no_gpu():
    try:
        check_driver()
    except Exception as error:
        return str(error)
    return ""


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(no_gpu()), reason=no_gpu() or "there is")]


@pytest.fixture
def gpu():
    with Gpu(0) as opened:
        yield opened


def test_copies_events_and_graphs(gpu):
    sent, back = gpu.page_locked((4, 3), np.float32), gpu.page_locked((3,), np.float32)
    sent[...] = np.arange(12).reshape(4, 3)
    array = gpu.array((4, 3), np.float32)
    gpu.upload(sent, array)
    again = gpu.capture(lambda: gpu.download(array[2], back))
    back[...] = -1
    again()
    event = gpu.event()
    event.wait()
    assert event.done()
    assert back.tolist() == [6, 7, 8]
    with pytest.raises(DeviceMemoryError):
        gpu.array((1 << 45,), np.uint8)


@pytest.fixture(params=["cuda", "trt"])
def backend(request, tmp_path):
    bundle = tmp_path / "default.anofpdm"
    shutil.copytree(DEFAULT, bundle)
    if request.param == "trt":
        done = CliRunner().invoke(export, ["engine", str(bundle), "--slots", "1,4,16"])
        assert done.exit_code == 0, done.output
    opened = open_device(request.param, open_bundle(bundle), slots=16)
    yield opened
    opened.close()


def test_the_loop_finds_what_the_cpu_finds(backend):
    bundle = open_bundle(DEFAULT)
    on_the_cpu = HostBackend(OnnxDenoiser(bundle.network))
    parity = compare(on_the_cpu, backend, Trial.of(bundle))
    parity.check(FP32_TOLERANCE if backend.device.startswith("cuda") else FP16_TOLERANCE)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_the_mask_of_the_example(device, tmp_path):
    volume = str(ROOT / "examples" / "simulated_flair.nii.gz")
    done = CliRunner().invoke(infer, [volume, "-o", str(tmp_path / "m.nii.gz"), "--device", device])
    assert done.exit_code == 0, done.output
    assert "12 of 55 slices unhealthy" in done.output
