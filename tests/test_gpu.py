"""On a real GPU: both networks in the device loop against the FP32 network on the CPU, and the
commands. Without one, tests/runtime/backends/cuda/test_loop.py runs the same loop on the host."""

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
    with Gpu(0) as gpu:
        yield gpu


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
    backend = open_device(request.param, open_bundle(bundle), slots=16)
    yield backend
    backend.close()


def test_the_loop_computes_what_the_cpu_computes(backend):
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
    want = {item.key: curves for item, curves in around.run(recipe, stream(x0))}
    pairs = list(zip(backend.run(recipe, stream(x0)), backend.run(recipe, stream(x0)),
                     strict=True))  # fmt: skip
    assert len({len(curves.M) for curves in want.values()}) > 1
    for results in zip(*pairs, strict=True):
        got = {item.key: curves for item, curves in results}
        for key, curves in want.items():
            np.testing.assert_allclose(got[key].M, curves.M, rtol=5e-3)
            np.testing.assert_allclose(got[key].H, curves.H, atol=5e-3 * curves.H.max())


def stream(x0):
    return (Slice(i, x) for i, x in enumerate(x0))


def test_closing_with_an_open_stream_and_opening_again():
    bundle = open_bundle(DEFAULT)
    recipe = Recipe(Process(Schedule(), 301, 10), 30.0, (0,))
    for _ in range(2):
        backend = open_device("cuda", bundle, slots=8)
        results = backend.run(recipe, stream(phantom_slices(20, 1, 128)))
        next(results)
        backend.close()
        results.close()


def test_too_many_slots_are_halved():
    backend = open_device("cuda", open_bundle(DEFAULT), slots=2**17)
    recipe = Recipe(Process(Schedule(), 301, 100), 30.0, (0,))
    assert len(list(backend.run(recipe, stream(phantom_slices(3, 1, 128))))) == 3
    assert backend.slots < 2**17
    assert "does not hold 131072 slots" in backend.notes[0]
    backend.close()


def test_a_thread_that_opened_a_gpu_may_end(gpu):
    failed = []

    def work():
        second = Gpu(0)
        second.array((10,), np.uint8)
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
    volume = str(ROOT / "examples" / "flair.nii.gz")
    done = CliRunner().invoke(infer, [volume, "-o", str(tmp_path / "m.nii.gz"), "--device", device])
    assert done.exit_code == 0, done.output
    want = Segmenter.load(device="cpu").segment(nib.load(volume)).mask > 0
    got = nib.load(tmp_path / "m.nii.gz").get_fdata() > 0
    assert 2 * (got & want).sum() >= 0.98 * (got.sum() + want.sum()) > 0
