"""A bundle's network on a GPU, ready to use."""

from types import ModuleType

from ...bundle.bundle import Bundle
from ...bundle.engines import (
    FLAVOURS,
    Engine,
    find_engine,
    flavour_of,
    load_tensorrt,
    read_engine,
    rebuild,
)
from ...errors import BundleError, MissingExtraError
from .backend import GpuBackend
from .device import Gpu
from .network import DeviceNetwork
from .onnxruntime import OrtNetwork
from .tensorrt import TrtNetwork

_SLOTS = 64


def open_gpu(kind: str, index: int, bundle: Bundle, slots: int | None) -> GpuBackend:
    """The backend of a GPU: ``cuda`` for ONNX Runtime, ``trt`` for an engine of the bundle."""
    gpu = Gpu(index)
    try:
        network, name = _network(kind, gpu, bundle)
        manifest = bundle.manifest
        if slots is None:
            slots = min(_SLOTS, network.longest or _SLOTS)
        return GpuBackend(
            gpu,
            network,
            f"{kind}:{index} ({gpu.name}, {name})",
            len(manifest.modalities),
            manifest.grid.size,
            slots,
        )
    except BaseException:
        gpu.close()
        raise


def _network(kind: str, gpu: Gpu, bundle: Bundle) -> tuple[DeviceNetwork, str]:
    if kind == "cuda":
        ort = OrtNetwork(gpu, bundle.network)
        return ort, f"ONNX Runtime {ort.version}, FP32"
    trt, engine = _engine(gpu, bundle)
    content = read_engine(bundle, engine)
    network = TrtNetwork(gpu, trt, content, rebuild(bundle.path))
    return network, f"{engine.flavour} {engine.version}, FP16, engine {engine.sha256[:12]}"


def _engine(gpu: Gpu, bundle: Bundle) -> tuple[ModuleType, Engine]:
    """The engine for this GPU and for a TensorRT that is installed."""
    misfits: list[BundleError] = []
    for name in FLAVOURS:
        try:
            trt = load_tensorrt(name)
        except MissingExtraError:
            continue
        try:
            return trt, find_engine(
                bundle,
                gpu=gpu.name,
                compute_capability=gpu.compute_capability,
                flavour=flavour_of(trt),
                version=trt.__version__,
            )
        except BundleError as error:
            misfits.append(error)
    if misfits:
        raise misfits[0]
    load_tensorrt()  # says why none can be loaded
    raise AssertionError
