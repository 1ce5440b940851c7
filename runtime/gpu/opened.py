"""A bundle's network on a GPU, ready to use."""

from __future__ import annotations

from ..bundle import Bundle
from ..engines import find_engine, flavour_of, load_tensorrt, read_engine, rebuild
from .backend import GpuBackend
from .cuda import Gpu
from .network import DeviceNetwork
from .ort_network import OrtNetwork
from .trt_network import TrtNetwork

_SLOTS = 64


def open_gpu(kind: str, index: int, bundle: Bundle, slots: int | None) -> GpuBackend:
    """See :func:`anofpdm.runtime.device.open_device`; ``kind``: ``cuda`` or ``trt``."""
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
    trt = load_tensorrt()
    engine = find_engine(
        bundle,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        flavour=flavour_of(trt),
        version=trt.__version__,
    )
    content = read_engine(bundle, engine)
    network = TrtNetwork(gpu, trt, content, rebuild(bundle.path))
    return network, f"{engine.flavour} {engine.version}, FP16"
