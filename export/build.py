"""Build an engine for the GPU that is there, and accept it only if it finds what the CPU finds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from anofpdm.runtime.backend import HostBackend
from anofpdm.runtime.bundle import Bundle
from anofpdm.runtime.denoiser import OnnxDenoiser
from anofpdm.runtime.engines import (
    ENGINES,
    Engine,
    check_engine_folder,
    flavour_of,
    fp16_network,
    rebuild,
    write_engine,
)
from anofpdm.runtime.gpu.backend import GpuBackend
from anofpdm.runtime.gpu.cuda import Gpu
from anofpdm.runtime.gpu.trt_network import TrtNetwork

from .build_progress import Progress
from .engine import SLOTS, build_engine
from .parity import FP16_TOLERANCE, Parity, Trial, compare


def build_on(
    gpu: Gpu,
    trt: ModuleType,
    bundle: Bundle,
    slots: Sequence[int] = SLOTS,
    *,
    workspace_mib: int | None = None,
    progress: Progress | None = None,
    tolerance: Parity | None = FP16_TOLERANCE,
) -> Engine:
    """Build an engine of a bundle's FP16 network, compare the whole loop with it with the FP32
    network on the CPU, and put it into the bundle with the figures.

    Parameters
    ----------
    trt, slots, workspace_mib, progress : see :func:`anofpdm.export.engine.build_engine`
    tolerance : how far the engine may be from the FP32 network; None takes any

    Raises
    ------
    ParityError
        If it is further; then nothing is written.
    BundleError, DeviceError, EngineError, OutputError, SetupError
        If it cannot be built or kept.
    """
    network = fp16_network(bundle)
    check_engine_folder(bundle)
    began = time.perf_counter()
    content = build_engine(
        trt,
        network,
        slots,
        workspace_mib=workspace_mib,
        timing_cache=_timing_cache(bundle, gpu, trt),
        progress=progress,
        compute_capability=gpu.compute_capability,
    )
    seconds = time.perf_counter() - began
    manifest = bundle.manifest
    loaded = TrtNetwork(gpu, trt, content, rebuild(bundle.path))
    backend = GpuBackend(gpu, loaded, gpu.name, len(manifest.modalities), manifest.grid.size,
                         max(slots))  # fmt: skip
    try:
        parity = compare(HostBackend(OnnxDenoiser(bundle.network)), backend, Trial.of(bundle))
    finally:
        backend.release()
    if tolerance:
        parity.check(tolerance, "the engine", "the FP32 network on the CPU", "it was not kept")
    engine = Engine(
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        flavour=flavour_of(trt),
        version=str(trt.__version__),
        network_sha256=manifest.files[network.name],
        slots=tuple(slots),
        parity=asdict(parity),
        provenance={"driver_cuda": gpu.driver, "build_s": round(seconds, 1),
                    "engine_mb": round(len(content) / 1e6, 1)},
    )  # fmt: skip
    return write_engine(bundle, engine, content)


def _timing_cache(bundle: Bundle, gpu: Gpu, trt: ModuleType) -> Path:
    sm = gpu.compute_capability.replace(".", "")
    return bundle.path / ENGINES / f"sm{sm}_{flavour_of(trt)}-{trt.__version__}.timing"
