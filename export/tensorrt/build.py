"""Building a TensorRT engine of a bundle's FP16 network. Needs no torch.

``trt`` is the module: ``tensorrt`` from 10.12, or ``tensorrt_rtx``, which builds without a GPU;
see :func:`anofpdm.runtime.bundle.engines.load_tensorrt`.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from anofpdm.runtime.backends.cuda.tensorrt import last_errors, new_log
from anofpdm.runtime.bundle.engines import check_slots, flavour_of
from anofpdm.runtime.errors import (
    QUOTED,
    BundleError,
    EngineError,
    OptionsError,
    OutputError,
    one_line,
)
from anofpdm.runtime.util.files import whole_file, writable_folder

from .progress import BuildProgress, Progress

_INPUTS = {"x_t": ("FLOAT", 4), "t": ("INT64", 1)}
_OUTPUTS = {"eps_healthy": ("FLOAT", 4), "eps_null": ("FLOAT", 4)}


@dataclass(frozen=True)
class Parsed:
    """A network definition, and the objects that must live as long as it does."""

    network: Any  # INetworkDefinition
    builder: Any  # Builder
    parser: Any  # OnnxParser
    log: Any  # ILogger of new_log(), with the last errors

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Channels, height and width of x_t."""
        _, channels, height, width = self.network.get_input(0).shape
        return channels, height, width


def parse_network(trt: ModuleType, path: Path) -> Parsed:
    """Parse a typed FP16 network as a strongly typed one.

    Raises
    ------
    BundleError
        If the file is missing, is not ONNX, has a node that TensorRT does not support, has not the
        inputs and outputs of a bundle's network, or has convolutions that are not in float16.
    EngineError
        If TensorRT does not start.
    """
    log = new_log(trt)
    try:
        builder = trt.Builder(log)
    except Exception as error:  # without a GPU driver: TypeError, from a null pointer
        raise EngineError(
            f"{flavour_of(trt)} {trt.__version__} does not start ({last_errors(log) or error}): "
            "see whether nvidia-smi finds a GPU, and a driver that is new enough"
        ) from error
    # TensorRT 11 and RTX have strongly typed networks only, and ignore the flag.
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    parsed = Parsed(network := builder.create_network(typed), builder,
                    parser := trt.OnnxParser(network, log), log)  # fmt: skip
    if not path.is_file():
        raise BundleError(f"{path} does not exist: export the bundle again")
    # The parser accepts an empty file.
    if not parser.parse_from_file(str(path)) or not network.num_layers:
        raise BundleError(f"{path} {_first_error(parser)}")
    _check_ends(trt, path, network)
    _check_precision(trt, path, network)
    return parsed


def _first_error(parser: Any) -> str:
    """The first error of parsing, to follow the file's name, with the repair."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    nodes = [error for error in errors if error.node_name() or error.node_operator()]
    if not nodes:
        why = f" ({one_line(errors[0].desc(), QUOTED)})" if errors else ""
        return f"is not a network, or is incomplete{why}: export the bundle again"
    more = f", and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    return (
        f"has a node that TensorRT cannot take: {nodes[0].node_name()} "
        f"({nodes[0].node_operator()}){more}: {one_line(nodes[0].desc(), QUOTED)}: export the "
        "bundle again, or update TensorRT"
    )


def _check_ends(trt: ModuleType, path: Path, network: Any) -> None:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for tensors, expected, verb in ((inputs, _INPUTS, "takes"), (outputs, _OUTPUTS, "gives")):
        actual = {tensor.name: (tensor.dtype.name, len(tensor.shape)) for tensor in tensors}
        if actual != expected:
            raise BundleError(
                f"{path} {verb} {_listed(actual)}, a bundle's network {_listed(expected)}: export "
                "the bundle again"
            )
    if [tensor.shape[0] for tensor in inputs] != [-1, -1] or min(inputs[0].shape[1:]) < 1:
        raise BundleError(f"{path} needs a free batch and fixed sizes: export the bundle again")


def _check_precision(trt: ModuleType, path: Path, network: Any) -> None:
    """Raise BundleError unless every convolution is in float16."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    convolutions = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    typed = sum(layer.get_input(0).dtype == trt.DataType.HALF for layer in convolutions)
    if not convolutions or typed < len(convolutions):
        raise BundleError(
            f"{path} is not a typed FP16 network ({typed} of {len(convolutions)} convolutions are "
            "in float16): export the bundle again"
        )


def _listed(tensors: dict[str, tuple[str, int]]) -> str:
    named = (f"{name} ({dtype}, {axes} axes)" for name, (dtype, axes) in tensors.items())
    return ", ".join(named) or "nothing"


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
    trt : the module ``tensorrt`` or ``tensorrt_rtx``
    network : the bundle's ``unet_fp16.onnx``
    slots : batch sizes, ascending; each gets an optimization profile of exactly this size
    workspace_mib : limit of a layer's scratch memory on the GPU; None for no limit
    timing_cache : file that makes the next build faster; written anew where there is none that
        fits. Not used by TensorRT-RTX, which times nothing
    progress : called with the name of a phase and the finished share of the work, 0 to 1
    compute_capability : like ``8.9``: TensorRT-RTX builds for this GPU only if it has such a
        target; otherwise, and for None, for all GPUs of its default (8.0 and later). TensorRT
        always builds for the GPU that it runs on

    Returns
    -------
    the serialized engine

    Raises
    ------
    BundleError
        If ``network`` cannot be built, see :func:`parse_network`.
    EngineError
        If TensorRT does not start, or fails.
    OptionsError, OutputError
        If ``slots`` or the folder of ``timing_cache`` are impossible.
    KeyboardInterrupt
        On Ctrl-C; TensorRT ends the build at its next step.
    """
    try:
        check_slots(tuple(slots))
    except ValueError as error:
        raise OptionsError(f"{error}: give other ones") from error
    # With a timing cache TensorRT-RTX would look for a GPU, and warn.
    use_cache = timing_cache if flavour_of(trt) == "tensorrt" else None
    if use_cache:
        writable_folder(use_cache)
    with BuildProgress(progress) as build:
        parsed = parse_network(trt, network)
        config = parsed.builder.create_builder_config()
        build.attach(trt, config)
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
            # Needed to capture inference in a CUDA graph.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
        _set_target(trt, config, compute_capability)
        _add_profiles(parsed, config, slots)
        cache = _load_cache(config, use_cache) if use_cache else None
        parsed.log.errors.clear()
        engine = parsed.builder.build_serialized_network(parsed.network, config)
        if engine is None:
            raise EngineError(
                f"{flavour_of(trt)} {trt.__version__} cannot build an engine of {network} "
                f"({last_errors(parsed.log) or 'it gives no reason'}): see that the GPU has "
                "free memory, or build for fewer slots"
            )
        if use_cache and cache is not None:
            # A cache that cannot be written must not cost the finished engine.
            with suppress(OutputError), whole_file(use_cache) as temporary:
                temporary.write_bytes(bytes(cache.serialize()))
        return bytes(engine)


def _add_profiles(parsed: Parsed, config: Any, slots: Sequence[int]) -> None:
    """Give ``config`` one optimization profile for each slot count, of exactly that batch size."""
    for index, count in enumerate(slots):
        profile = parsed.builder.create_optimization_profile()
        for name, shape in (("x_t", (count, *parsed.sizes)), ("t", (count,))):
            profile.set_shape(name, shape, shape, shape)
        if config.add_optimization_profile(profile) != index:
            raise EngineError(
                f"TensorRT refuses {count} slots ({last_errors(parsed.log)}): give others"
            )


def _set_target(trt: ModuleType, config: Any, compute_capability: str | None) -> None:
    targets = getattr(trt, "ComputeCapability", None)
    if compute_capability is None or targets is None:
        return
    target = targets.__members__.get(f"SM{compute_capability.replace('.', '')}")
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(target, 0)


def _load_cache(config: Any, path: Path) -> Any:
    """Set the timing cache of the file if it fits, else a new one; None if both fail."""
    for content in (path.read_bytes() if path.is_file() else b"", b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None
