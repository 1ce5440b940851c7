"""How the GPU's networks call ONNX Runtime, TensorRT and the driver. The packages are recording
stand-ins, or the real ones as far as they go without a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest
from host_gpu import HostGpu, memory
from support import SUMMATION

from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.backends.cuda import device as cuda
from anofpdm.runtime.backends.cuda import onnxruntime as ort_network
from anofpdm.runtime.backends.cuda.network import Tensors
from anofpdm.runtime.backends.cuda.onnxruntime import OrtNetwork
from anofpdm.runtime.backends.cuda.tensorrt import TrtNetwork
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.bundle.engines import load_tensorrt
from anofpdm.runtime.errors import BundleError, DeviceError, DeviceMemoryError, OptionsError

# ---- ONNX Runtime


class Ort:
    """ONNX Runtime with the CUDA provider: sessions that record how they are made and run."""

    __version__ = "1.31.1"
    RunOptions = SessionOptions = lambda self: SimpleNamespace(
        entries={}, add_run_config_entry=lambda *entry: self.entries.append(entry)
    )

    def __init__(self, used="CUDAExecutionProvider", available=True, error=None):
        self.used, self.available, self.error = used, available, error
        self.entries, self.bound, self.runs, self.preloaded = [], [], [], 0

    def preload_dlls(self):
        print("Failed to load libcudnn.so.9")
        self.preloaded += 1

    def get_available_providers(self):
        return ["CUDAExecutionProvider"] if self.available else ["CPUExecutionProvider"]

    def InferenceSession(self, path, options, providers, enable_fallback=1):
        assert enable_fallback == 0  # else it prints, and goes on with the CPU
        self.providers = providers
        return self

    def get_providers(self):
        return [self.used]

    def io_binding(self):
        return self

    def bind_input(self, *args):
        self.bound.append(("in", *args))

    def bind_output(self, *args):
        self.bound.append(("out", *args))

    def run_with_iobinding(self, binding, options):
        if self.error:
            raise RuntimeError(self.error)
        self.runs.append(binding)


@pytest.fixture
def ort(monkeypatch):
    def stand_in(**options):
        fake = Ort(**options)
        monkeypatch.setattr(ort_network, "load_onnxruntime", lambda extra: fake)
        gpu = HostGpu()
        gpu.stream, gpu.index = 4711, 1
        return fake, gpu

    return stand_in


def test_onnxruntime_runs_on_the_loops_stream_and_memory(ort, tmp_path, capsys):
    fake, gpu = ort()
    network = OrtNetwork(gpu, tmp_path / "unet.onnx")
    (name, options), fallback = fake.providers
    assert (name, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {
        "device_id": "1", "user_compute_stream": "4711", "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested",
    }  # fmt: skip
    assert capsys.readouterr().out == ""
    assert fake.entries == [("disable_synchronize_execution_providers", "1")]
    assert fake.preloaded == 1
    tensors = Tensors.allocate(gpu, 8, 2, 4)
    network.bind(tensors, 3)()
    shape = (3, 2, 4, 4)
    assert fake.bound == [
        ("in", "x_t", "cuda", 1, np.float32, shape, tensors.x_t.address),
        ("in", "t", "cuda", 1, np.int64, (3,), tensors.t.address),
        ("out", "eps_healthy", "cuda", 1, np.float32, shape, tensors.eps_healthy.address),
        ("out", "eps_null", "cuda", 1, np.float32, shape, tensors.eps_null.address),
    ]
    assert len(fake.runs) == 1
    assert network.widths(10) == (1, 3, 10)
    assert network.widths(2) == (1, 2)
    assert network.widths(1) == (1,)
    network.release()
    network.bind(tensors, 8)()  # loads the session again


def test_a_silent_fallback_to_the_cpu_is_reported(ort, tmp_path):
    _, gpu = ort(used="CPUExecutionProvider")
    with pytest.raises(DeviceError, match="fell back to CPUExecutionProvider: CUDA 13 or cuDNN 9"):
        OrtNetwork(gpu, tmp_path / "unet.onnx")
    _, gpu = ort(available=False)
    with pytest.raises(DeviceError, match="built for the CPU only: run pip uninstall"):
        OrtNetwork(gpu, tmp_path / "unet.onnx")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("BFCArena: Failed to allocate memory for requested buffer", DeviceMemoryError),
        ("CUDA failure 2: out of memory", DeviceMemoryError),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", DeviceMemoryError),
        ("CUDA failure 719: unspecified launch failure", DeviceError),
        ("Got invalid dimensions for input: x_t", BundleError),
    ],
)
def test_what_onnxruntime_raises(ort, tmp_path, error, kind):
    _, gpu = ort(error=error)
    predict = OrtNetwork(gpu, tmp_path / "unet.onnx").bind(Tensors.allocate(gpu, 1, 1, 4), 1)
    with pytest.raises(kind) as caught:
        predict()
    assert type(caught.value) is kind


@pytest.mark.filterwarnings("ignore:Duplicate provider")
def test_the_real_onnxruntime_takes_memory_by_its_address(monkeypatch):
    """Its CPU provider, on the memory of a GPU made of the host."""
    monkeypatch.setattr(ort_network, "_PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(ort_network, "_MEMORY", "cpu")
    default = open_bundle(DEFAULT)
    gpu = HostGpu()
    network = OrtNetwork(gpu, default.network)
    tensors = Tensors.allocate(gpu, 3, 1, 128)
    rng = np.random.default_rng(0)
    x_t, t = rng.standard_normal((3, 1, 128, 128)).astype(np.float32), np.array([1, 300, 600])
    gpu.send(x_t, tensors.x_t)
    gpu.send(t - 1, tensors.t)
    want = OnnxDenoiser(default.network)(x_t, t)
    tolerance = SUMMATION * np.abs(want).max()
    for width in (3, 2):
        memory(tensors.eps_healthy)[...] = memory(tensors.eps_null)[...] = np.nan
        network.bind(tensors, width)()
        for got, whole in zip((tensors.eps_healthy, tensors.eps_null), want, strict=True):
            np.testing.assert_allclose(memory(got)[:width], whole[:width], atol=tolerance)
            assert np.isnan(memory(got)[width:]).all()


# ---- TensorRT


def test_all_that_is_used_of_tensorrt_exists():
    """In TensorRT-RTX, which can be installed without a GPU."""
    trt = load_tensorrt("tensorrt_rtx")
    used = {
        trt.Runtime: ["deserialize_cuda_engine"],
        trt.ICudaEngine: [
            "num_optimization_profiles", "get_tensor_profile_shape", "create_runtime_config",
            "create_execution_context", "get_device_memory_size_for_profile_v2",
        ],
        trt.IRuntimeConfig: [
            "set_execution_context_allocation_strategy",
            "dynamic_shapes_kernel_specialization_strategy",
        ],
        trt.IExecutionContext: [
            "set_optimization_profile_async", "set_input_shape", "set_tensor_address",
            "set_device_memory", "execute_async_v3", "is_stream_capturable",
        ],
        trt.ExecutionContextAllocationStrategy: ["USER_MANAGED"],
        trt.DynamicShapesKernelSpecializationStrategy: ["EAGER"],
    }  # fmt: skip
    for kind, names in used.items():
        for name in names:
            assert hasattr(kind, name), (kind, name)


def test_all_that_is_used_of_the_drivers_bindings_exists():
    driver = pytest.importorskip("cuda.bindings.driver", reason="only for Linux on x86-64")
    for name in (
        "cuStreamBeginCapture",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
        "cuGraphDestroy",
        "cuGraphLaunch",
        "cuGraphExecDestroy",
        "cuCtxPopCurrent",
    ):
        assert callable(getattr(driver, name))  # fmt: skip
    assert driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED is not None
    for number, kind in ((2, DeviceMemoryError), (719, DeviceError)):
        with pytest.raises(DeviceError) as caught:
            cuda.check_call(lambda number=number: (driver.CUresult(number),))
        assert type(caught.value) is kind
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="only for Linux on x86-64")
    with pytest.raises(DeviceError, match="NVRTC_ERROR_PROGRAM_CREATION_FAILURE") as caught:
        cuda.check_call(lambda: (nvrtc.nvrtcResult(2),))
    assert type(caught.value) is DeviceError


class Trt:
    """TensorRT: an engine with profiles for some slot counts, contexts that record."""

    __name__, __version__ = "tensorrt", "11.4.0.106"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")

    class ILogger:
        Severity = SimpleNamespace(ERROR=1)

    def __init__(self, slots=(1, 4, 16), reads=True, runs=True, accepts=True):
        self.slots, self.reads, self.runs, self.accepts = slots, reads, runs, accepts
        self.num_optimization_profiles, self.contexts = len(slots), []

    def Runtime(self, logger):
        logger.log(1, "no kernel image\n is available")
        logger.log(2, "chatter")
        return self

    def deserialize_cuda_engine(self, content):
        return self if self.reads else None

    def get_tensor_profile_shape(self, name, profile):
        n = self.slots[profile]
        return [(n, 1, 4, 4)] * 3

    def get_device_memory_size_for_profile_v2(self, profile):
        return 1000 * self.slots[profile]

    def create_execution_context(self, strategy):
        assert strategy == "user"
        calls = []

        def call(name, answer):
            return lambda *arguments: (calls.append((name, *arguments)), answer)[1]

        self.contexts.append(calls)
        return SimpleNamespace(
            set_optimization_profile_async=call("profile", True),
            set_input_shape=call("shape", self.accepts),
            set_tensor_address=call("address", True),
            set_device_memory=call("memory", None),
            execute_async_v3=call("run", self.runs),
        )


def test_tensorrt_runs_on_the_loops_stream_and_memory():
    gpu, trt = HostGpu(), Trt()
    gpu.stream = 4711
    network = TrtNetwork(gpu, trt, b"engine", "build it")
    assert network.widths(1) == (1,)
    assert network.widths(5) == (1, 4, 16)
    with pytest.raises(OptionsError, match="at most 16 slots, not 17: use --slots 16, or build it"):
        network.widths(17)
    tensors, before = Tensors.allocate(gpu, 16, 1, 4), gpu.used
    wide, narrow = network.bind(tensors, 16), network.bind(tensors, 4)
    assert gpu.used == before + 16_000  # shared
    wide()
    narrow()
    for calls, width, profile in zip(trt.contexts, (16, 4), (2, 1), strict=True):
        scratch = calls[-2][1]
        assert calls == [
            ("profile", profile, 4711),
            ("shape", "x_t", (width, 1, 4, 4)),
            ("shape", "t", (width,)),
            ("address", "x_t", tensors.x_t.address),
            ("address", "t", tensors.t.address),
            ("address", "eps_healthy", tensors.eps_healthy.address),
            ("address", "eps_null", tensors.eps_null.address),
            ("memory", scratch, 16_000),
            ("run", 4711),
        ]
    assert scratch % 256 == 0
    network.close()
    network.close()
    assert gpu.used == before


def test_engines_that_cannot_be_used():
    gpu = HostGpu()
    why = r"cannot be read by tensorrt 11.4.0.106 on Host .no kernel image is available.: build it"
    with pytest.raises(BundleError, match=why):
        TrtNetwork(gpu, Trt(reads=False), b"", "build it")
    tensors = Tensors.allocate(gpu, 16, 1, 4)
    with pytest.raises(BundleError, match="inputs and outputs are not the bundle's: build it"):
        TrtNetwork(gpu, Trt(accepts=False), b"", "build it").bind(tensors, 4)
    with pytest.raises(DeviceError, match=r"does not run on Host .*: build it, or use"):
        TrtNetwork(gpu, Trt(runs=False), b"", "build it").bind(tensors, 4)()
    gpu.nbytes = gpu.used + 100 * 2**20
    for wrong in ({"reads": False}, {"runs": False}):
        with pytest.raises(DeviceMemoryError):
            TrtNetwork(gpu, Trt(**wrong), b"", "build it").bind(tensors, 4)()


def test_tensorrt_rtx_compiles_the_final_kernels_before_a_graph_is_captured():
    made = []

    class Rtx(Trt):
        __name__ = "tensorrt_rtx"
        DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY=0, EAGER=1)

        def create_runtime_config(self):
            made.append(SimpleNamespace(set_execution_context_allocation_strategy=lambda strategy:
                                        setattr(made[-1], "memory", strategy)))  # fmt: skip
            return made[-1]

        def create_execution_context(self, config):
            context = super().create_execution_context("user")
            context.is_stream_capturable = lambda stream: stream == 4711
            return context

    gpu = HostGpu()
    gpu.stream = 4711
    network = TrtNetwork(gpu, Rtx(), b"engine", "build it")
    network.bind(Tensors.allocate(gpu, 4, 1, 4), 4)
    assert (made[0].memory, made[0].dynamic_shapes_kernel_specialization_strategy) == ("user", 1)
    assert network.capturable
    gpu.stream = 1
    assert not network.capturable
