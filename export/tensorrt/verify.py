"""Building an engine for a GPU, accepted only if its results are those of the CPU."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.backends.cuda.backend import GpuBackend
from anofpdm.runtime.backends.cuda.device import Gpu
from anofpdm.runtime.backends.cuda.tensorrt import TrtNetwork
from anofpdm.runtime.bundle.bundle import Bundle
from anofpdm.runtime.bundle.engines import ENGINES, Engine, flavour_of, fp16_network
from anofpdm.runtime.errors import BundleError, EngineError

from ..bundle_update import check_engine_folder, write_engine
from ..parity import FP16_TOLERANCE, Observed, Parity, Trial, compare
from .build import SLOTS, build_engine
from .progress import Progress


def build_on(
    gpu: Gpu,
    trt: ModuleType,
    bundle: Bundle,
    slots: Sequence[int] = SLOTS,
    *,
    workspace_mib: int | None = None,
    progress: Progress | None = None,
    tolerance: Parity | None = FP16_TOLERANCE,
    reference: Observed | None = None,
) -> Engine:
    """Build an engine of a bundle's FP16 network, verify it, and write it into the bundle.

    The whole loop with the engine is compared with the loop with the FP32 network on the CPU.

    Parameters
    ----------
    trt, slots, workspace_mib, progress : as for
        :func:`anofpdm.export.tensorrt.build.build_engine`
    tolerance : largest differences from the FP32 network; None for any
    reference : the FP32 network's results on the bundle's trial, if they were computed before

    Raises
    ------
    ParityError
        If a difference is beyond the tolerance; then nothing is written.
    BundleError, DeviceError, EngineError, OutputError, OptionsError
        If the engine cannot be built or written.
    """
    network = fp16_network(bundle)
    check_engine_folder(bundle)
    started = time.perf_counter()
    with _timing_cache(bundle, gpu, trt) as timing_cache, gpu.current():
        content = build_engine(
            trt,
            network,
            slots,
            workspace_mib=workspace_mib,
            timing_cache=timing_cache,
            progress=progress,
            compute_capability=gpu.compute_capability,
        )
    seconds = time.perf_counter() - started
    manifest = bundle.manifest
    try:
        loaded = TrtNetwork(gpu, trt, content, "try another version, or --flavour")
    except BundleError as error:
        raise EngineError(f"an engine was built that does not run here: {error}") from error
    backend = GpuBackend(gpu, loaded, gpu.name, len(manifest.modalities), manifest.grid.size,
                         max(slots))  # fmt: skip
    try:
        on_cpu = reference or NumpyBackend(OnnxDenoiser(bundle.network))
        parity = compare(on_cpu, backend, Trial.of(bundle))
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


@contextmanager
def _timing_cache(bundle: Bundle, gpu: Gpu, trt: ModuleType) -> Iterator[Path]:
    """The file of TensorRT's timing cache in the bundle; its folder is removed if empty."""
    sm, folder = gpu.compute_capability.replace(".", ""), bundle.path / ENGINES
    folder.mkdir(exist_ok=True)
    try:
        yield folder / f"sm{sm}_{flavour_of(trt)}-{trt.__version__}.timing"
    finally:
        with suppress(OSError):
            folder.rmdir()
