"""On a real GPU: both networks in the device loop against the FP32 network on the CPU, and the
commands. Without one, tests/runtime/test_gpu_row.py runs the same loop on the host."""

import shutil
import threading

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from support import ROOT

from anofpdm.export.cli import main as export
from anofpdm.export.parity import FP16_TOLERANCE, FP32_TOLERANCE, Trial, compare
from anofpdm.export.phantom import phantom_slices
from anofpdm.runtime.backends.base import Recipe
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.backends.cuda.device import Gpu, check_driver
from anofpdm.runtime.backends.device import open_device
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.bundle.engines import load_tensorrt
from anofpdm.runtime.cli.infer import main as infer
from anofpdm.runtime.errors import DeviceMemoryError, MissingExtraError, OptionsError
from anofpdm.runtime.method.anomaly_map import MapRule
from anofpdm.runtime.method.early_stop import StopRule
from anofpdm.runtime.method.process import Process, Slice
from anofpdm.runtime.method.schedule import Schedule
from anofpdm.runtime.segmenter import Segmenter


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
        try:
            load_tensorrt()
        except MissingExtraError as error:
            pytest.skip(str(error))
        done = CliRunner().invoke(export, ["engine", str(bundle), "--slots", "1,4,16"])
        assert done.exit_code == 0, done.output
    opened = open_device(request.param, open_bundle(bundle), slots=16)
    yield opened
    opened.close()


def test_the_loop_finds_what_the_cpu_finds(backend):
    bundle = open_bundle(DEFAULT)
    on_the_cpu = NumpyBackend(OnnxDenoiser(bundle.network))
    parity = compare(on_the_cpu, backend, Trial.of(bundle))
    parity.check(FP32_TOLERANCE if backend.device.startswith("cuda") else FP16_TOLERANCE)


@pytest.mark.parametrize("encoding", ["ddim", "ddpm"])
def test_early_stop_other_maps_and_two_streams_at_once(backend, encoding):
    """With the same predictions, to rounding: the loop in NumPy around the network on the GPU."""
    process = Process(Schedule(), 601, 50, encoding=encoding)
    recipe = Recipe(process, 30.0, (0,), MapRule("last", "gradient"), StopRule(0.9, 1), 7)
    x0 = phantom_slices(40, 1, 128)
    around = NumpyBackend(backend.denoiser, 16)
    want = {item.key: found for item, found in around.run(recipe, stream(x0))}
    pairs = list(zip(backend.run(recipe, stream(x0)), backend.run(recipe, stream(x0)),
                     strict=True))  # fmt: skip
    assert len({len(found.M) for found in want.values()}) > 1
    for one in (0, 1):
        got = {pair[one][0].key: pair[one][1] for pair in pairs}
        for key, found in want.items():
            np.testing.assert_allclose(got[key].M, found.M, rtol=5e-3)
            np.testing.assert_allclose(got[key].H, found.H, atol=5e-3 * found.H.max())


def stream(x0):
    return (Slice(i, one) for i, one in enumerate(x0))


def test_closing_with_an_open_stream_and_opening_again():
    bundle = open_bundle(DEFAULT)
    recipe = Recipe(Process(Schedule(), 301, 10), 30.0, (0,))
    for _ in range(2):
        opened = open_device("cuda", bundle, slots=8)
        found = opened.run(recipe, stream(phantom_slices(20, 1, 128)))
        next(found)
        opened.close()
        found.close()


def test_too_many_slots_are_halved():
    opened = open_device("cuda", open_bundle(DEFAULT), slots=2**17)
    recipe = Recipe(Process(Schedule(), 301, 100), 30.0, (0,))
    assert len(list(opened.run(recipe, stream(phantom_slices(3, 1, 128))))) == 3
    assert opened.slots < 2**17
    assert "does not hold 131072 slots" in opened.notes[0]
    opened.close()


def test_a_thread_that_opened_a_gpu_may_end(gpu):
    failed = []

    def work():
        held = Gpu(0)
        held.array((10,), np.uint8)
        try:
            gpu.wait()
        except OptionsError as error:
            failed.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == ["a GPU belongs to the thread that opened it: load a Segmenter in this thread"]
    gpu.wait()


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_the_mask_of_the_example(device, tmp_path):
    volume = str(ROOT / "examples" / "simulated_flair.nii.gz")
    done = CliRunner().invoke(infer, [volume, "-o", str(tmp_path / "m.nii.gz"), "--device", device])
    assert done.exit_code == 0, done.output
    want = Segmenter.load(device="cpu").segment(nib.load(volume)).mask > 0
    got = nib.load(tmp_path / "m.nii.gz").get_fdata() > 0
    assert 2 * (got & want).sum() >= 0.98 * (got.sum() + want.sum()) > 0
