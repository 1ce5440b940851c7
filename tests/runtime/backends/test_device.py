"""Which device is used, why not the others, and how it is closed."""

import ctypes
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from host_gpu import HostGpu, on_gpu
from support import bundle, head, save, toy_network, write_toy_bundle

from anofpdm.runtime import segmenter as segmenter_module
from anofpdm.runtime.backends import device as device_module
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.threads import splits_batches
from anofpdm.runtime.backends.cuda import device as cuda
from anofpdm.runtime.backends.cuda import open as cuda_open
from anofpdm.runtime.backends.cuda.device import check_driver
from anofpdm.runtime.backends.device import open_device
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.cli.infer import main as infer
from anofpdm.runtime.errors import BundleError, DeviceError, MissingExtraError, OptionsError
from anofpdm.runtime.segmenter import Segmenter


@pytest.fixture
def gpus(monkeypatch):
    """By kind of device, the error that opening a GPU raises."""
    errors = {}

    def open_gpu(kind, index, bundle, slots):
        if kind in errors:
            raise errors[kind]
        backend = on_gpu(toy_network, 1, 8, slots or 64)
        backend.device = f"{kind}:{index}"
        return backend

    monkeypatch.setattr(cuda_open, "open_gpu", open_gpu)
    monkeypatch.setattr(device_module, "OnnxDenoiser", lambda path, threads: toy_network)
    monkeypatch.setattr(device_module, "splits_batches", lambda path: True)
    return errors


def test_auto_uses_the_fastest_device_and_names_why_nothing_faster(gpus):
    assert open_device("auto", bundle()).device == "trt:0"
    gpus["trt"] = BundleError("no engine: build one")
    assert open_device("auto", bundle()).device == "cuda:0"
    gpus["cuda"] = DeviceError("no cuDNN: install it")
    backend = open_device("auto", bundle(), slots=7)
    assert isinstance(backend, NumpyBackend)
    assert backend.device == "cpu; not trt: no engine: build one; not cuda: no cuDNN: install it"
    assert backend.slots == 7
    gpus["trt"] = gpus["cuda"] = DeviceError("no NVIDIA driver")
    assert open_device("auto", bundle()).device == "cpu; not trt or cuda: no NVIDIA driver"


def test_a_named_device_is_used_or_refused(gpus):
    assert open_device("cuda:1", bundle()).device == "cuda:1"
    assert open_device("TRT", bundle()).device == "trt:0"
    assert open_device("cpu", bundle()).device == "cpu"
    gpus["cuda"] = DeviceError("no cuDNN: install it")
    with pytest.raises(DeviceError, match="no cuDNN"):
        open_device("cuda", bundle())
    for wrong in ("gpu", "cuda:", "cpu:1", "auto:0", "cuda:x", ""):
        with pytest.raises(OptionsError, match="is none of auto, cpu, cuda, trt"):
            open_device(wrong, bundle())
    with pytest.raises(OptionsError, match="slots must be at least 1, not 0"):
        open_device("cpu", bundle(), slots=0)


def test_the_tensorrt_that_has_an_engine_is_used(monkeypatch):
    """With both installed, where the second one's engine is there."""
    installed = {
        name: SimpleNamespace(__name__=name, __version__=version)
        for name, version in (("tensorrt", "11.4"), ("tensorrt_rtx", "1.7"))
    }
    built = {"tensorrt_rtx"}

    def load(name=None):
        if name in installed:
            return installed[name]
        raise MissingExtraError("neither can be imported: run pip install")

    def find(bundle, *, flavour, **rest):
        if flavour in built:
            return SimpleNamespace(flavour=flavour)
        raise BundleError(f"no engine for {flavour}: build one")

    monkeypatch.setattr(cuda_open, "load_tensorrt", load)
    monkeypatch.setattr(cuda_open, "find_engine", find)
    trt, engine = cuda_open._engine(HostGpu(), bundle())
    assert (trt.__name__, engine.flavour) == ("tensorrt_rtx", "tensorrt_rtx")
    built.clear()
    with pytest.raises(BundleError, match="no engine for tensorrt: build one"):
        cuda_open._engine(HostGpu(), bundle())
    installed.clear()
    with pytest.raises(MissingExtraError, match="neither can be imported"):
        cuda_open._engine(HostGpu(), bundle())


def test_calibrations_are_of_the_fp32_network(gpus):
    assert open_device("auto", bundle(), engines=False).device == "cuda:0"
    with pytest.raises(OptionsError, match="use cuda or cpu, not trt"):
        open_device("trt", bundle(), engines=False)


def test_without_a_driver_the_default_bundle_runs_on_the_cpu(monkeypatch):
    def no_driver(name, *args, **kwargs):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    backend = open_device("auto", open_bundle(DEFAULT))
    assert backend.device.startswith("cpu; not trt or cuda: no NVIDIA driver (")
    for device in ("cuda", "trt"):
        with pytest.raises(DeviceError, match="no NVIDIA driver"):
            open_device(device, open_bundle(DEFAULT))


class Driver:
    """The NVIDIA driver's library."""

    def __init__(self, started=0, version=13000, count=1):
        self.started, self.version, self.count = started, version, count

    def cuInit(self, flags):
        return self.started

    def cuDriverGetVersion(self, number):
        number._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, number):
        number._obj.value = self.count
        return 0


def test_the_driver_is_checked_first():
    assert check_driver(0, Driver()) == "13.0"
    assert check_driver(1, Driver(version=13020, count=2)) == "13.2"
    for driver, message in (
        (Driver(started=100), "finds no GPU"),
        (Driver(started=803), "does not start .error 803."),
        (Driver(version=12080), "supports CUDA 12.8, 13.0 is needed: update the driver"),
        (Driver(count=2), "there is no GPU 2: this machine has cuda:0, cuda:1"),
    ):
        with pytest.raises(DeviceError, match=message):
            check_driver(2, driver)


def test_a_gpu_without_pycuda_names_the_extra(monkeypatch):
    monkeypatch.setattr(cuda, "check_driver", lambda index: "13.0")
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'anofpdm\[gpu\]'"):
        cuda.Gpu(0)


def test_a_gpu_that_disappears_leaves_no_mask(tmp_path, monkeypatch):
    backend = on_gpu(toy_network, 1, 32)
    launches = []

    def launch(*arguments):
        launches.append(arguments)
        if len(launches) > 20:
            backend.gpu.lost = True
            raise DeviceError("the GPU failed (gone): nothing was written; use --device cpu")

    def wait():
        if backend.gpu.lost:
            raise DeviceError("the GPU has been given back")

    backend.gpu.launch, backend.gpu.wait = launch, wait
    backend.network.capturable = False
    backend.gpu.download = lambda source, target: target.fill(1)
    monkeypatch.setattr(segmenter_module, "open_device", lambda *args, **kwargs: backend)
    toy, volume = write_toy_bundle(tmp_path / "toy.anofpdm"), save(tmp_path / "v.nii.gz", head())
    mask = tmp_path / "mask.nii.gz"
    done = CliRunner().invoke(infer, [str(volume), "-o", str(mask), "--bundle", str(toy)])
    assert done.exit_code == 2
    assert done.output == "error: the GPU failed (gone): nothing was written; use --device cpu\n"
    assert {path.name for path in tmp_path.iterdir()} == {"toy.anofpdm", "v.nii.gz"}


def test_the_command_gives_its_device_back(tmp_path, monkeypatch):
    backend = on_gpu(toy_network, 1, 32)
    monkeypatch.setattr(segmenter_module, "open_device", lambda *args, **kwargs: backend)
    toy, volume = write_toy_bundle(tmp_path / "toy.anofpdm"), save(tmp_path / "v.nii.gz", head())
    mask = str(tmp_path / "mask.nii.gz")
    done = CliRunner().invoke(infer, [str(volume), "-o", mask, "--bundle", str(toy)])
    assert done.exit_code == 0, done.output
    assert backend.gpu.lost


def test_a_segmenter_gives_its_device_back(tmp_path):
    backend = on_gpu(toy_network, 1, 32, 300, nbytes=5_000_000)
    with Segmenter(bundle(), backend) as segmenter:
        result = segmenter.segment(head(), affine=np.diag([7.5, 7.5, 5.0, 1.0]))
        assert backend.gpu.used > 0
    assert backend.gpu.used == 0
    (note,) = result.notes
    assert note.startswith("the GPU's memory does not hold 300 slots: ")


def test_there_are_slots_for_all_threads_that_take_parts(gpus, monkeypatch, tmp_path):
    monkeypatch.setattr(device_module, "splits_batches", splits_batches)

    def slots(threads, size=1):
        path = tmp_path / "unet.onnx"
        with path.open("wb") as file:
            file.truncate(size)
        toy = replace(bundle(), path=tmp_path)
        return open_device("cpu", toy, threads=threads).slots

    assert [slots(n) for n in (1, 4, 12, 99)] == [4, 4, 12, 32]
    assert slots(12, size=65 << 20) == 4  # too large to be held twice
    monkeypatch.setattr(device_module, "usable_cores", lambda: 9)
    assert slots(None) == 9
