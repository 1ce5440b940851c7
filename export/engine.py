"""The bundle's FP16 network -> a TensorRT engine. Needs no torch.

``trt`` is the module: ``tensorrt`` from 10.12, or ``tensorrt_rtx``, which builds without a GPU;
see :func:`anofpdm.runtime.bundle.engines.load_tensorrt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from anofpdm.runtime.backends.cuda.tensorrt import said
from anofpdm.runtime.bundle.engines import check_slots, flavour_of
from anofpdm.runtime.errors import EngineError, OutputError, SetupError
from anofpdm.runtime.util.files import whole_file, writable_folder

from .build_progress import BuildProgress, Progress
from .typed_network import Parsed, parse_network

SLOTS = (1, 4, 16, 64)


def build_engine(
    trt: ModuleType,
    network: Path,
    slots: Sequence[int] = SLOTS,
    *,
    workspace_mib: int | None = None,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
    compute_capability: str | None = None,
) -> bytes:
    """Build an engine of a typed FP16 network, on the GPU that it is for.

    Parameters
    ----------
    network : the bundle's ``unet_fp16.onnx``
    slots : batch sizes, ascending; each gets an optimization profile, of this size only, in this
        order
    workspace_mib : the most scratch memory of the GPU that a layer may use; None for all there is
    timing_cache : a file that makes the next build faster; made, or made anew, where there is none
        that fits. TensorRT-RTX times nothing (its functions for it do nothing and are deprecated):
        there it is neither read nor written
    progress : called with the name of a phase and the share of the work that is done, 0 to 1
    compute_capability : like ``8.9``: TensorRT-RTX builds for this GPU only, if it has a target of
        its own for it; otherwise, and for None, for all GPUs that it builds for by default (8.0 and
        later). TensorRT always builds for the GPU that it runs on

    Raises
    ------
    BundleError
        If ``network`` is not one that can be built; see :func:`anofpdm.export.typed_network
        .parse_network`.
    EngineError
        If TensorRT does not start, or fails.
    SetupError, OutputError
        If ``slots`` or the place of ``timing_cache`` are impossible.
    KeyboardInterrupt
        If Ctrl-C was pressed meanwhile; TensorRT ends the build at its next step.
    """
    try:
        check_slots(tuple(slots))
    except ValueError as error:
        raise SetupError(f"{error}: give other ones") from error
    # TensorRT-RTX would look for a GPU, and warn.
    use_cache = timing_cache if flavour_of(trt) == "tensorrt" else None
    if use_cache:
        writable_folder(use_cache)
    with BuildProgress(progress) as watch:
        parsed = parse_network(trt, network)
        config = parsed.builder.create_builder_config()
        watch.attach(trt, config)
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
            # So that inference can be captured in a CUDA graph.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
        _aim(trt, config, compute_capability)
        _add_profiles(parsed, config, slots)
        cache = _load_cache(config, use_cache) if use_cache else None
        parsed.log.errors.clear()
        engine = parsed.builder.build_serialized_network(parsed.network, config)
        if engine is None:
            raise EngineError(
                f"{flavour_of(trt)} {trt.__version__} cannot build an engine of {network} "
                f"({said(parsed.log) or 'it gives no reason'}): see that the GPU has free memory, "
                "or build for fewer slots"
            )
        if use_cache and cache is not None:
            # The engine took long, and does not need it.
            with suppress(OutputError), whole_file(use_cache) as beside:
                beside.write_bytes(bytes(cache.serialize()))
        return bytes(engine)


def _add_profiles(parsed: Parsed, config: Any, slots: Sequence[int]) -> None:
    """Give ``config`` one optimization profile for each slot count, of exactly that batch size."""
    for index, count in enumerate(slots):
        profile = parsed.builder.create_optimization_profile()
        for name, shape in (("x_t", (count, *parsed.sizes)), ("t", (count,))):
            profile.set_shape(name, shape, shape, shape)
        if config.add_optimization_profile(profile) != index:
            raise EngineError(f"TensorRT refuses {count} slots ({said(parsed.log)}): give others")


def _aim(trt: ModuleType, config: Any, compute_capability: str | None) -> None:
    targets = getattr(trt, "ComputeCapability", None)
    if compute_capability is None or targets is None:
        return
    target = targets.__members__.get(f"SM{compute_capability.replace('.', '')}")
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(target, 0)


def _load_cache(config: Any, path: Path) -> Any:
    """The timing cache in use: what the file holds if it fits, else a new one; None if neither."""
    for held in (path.read_bytes() if path.is_file() else b"", b""):
        cache = config.create_timing_cache(held)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None
