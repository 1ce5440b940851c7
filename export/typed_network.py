"""ONNX file -> TensorRT network, checked. ``trt``: the module ``tensorrt`` or ``tensorrt_rtx``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from anofpdm.runtime.backends.cuda.tensorrt import brief, new_log, said
from anofpdm.runtime.bundle.engines import flavour_of
from anofpdm.runtime.errors import BundleError, EngineError

_INPUTS = {"x_t": ("FLOAT", 4), "t": ("INT64", 1)}
_OUTPUTS = {"eps_healthy": ("FLOAT", 4), "eps_null": ("FLOAT", 4)}


@dataclass(frozen=True)
class Parsed:
    """A network definition (``INetworkDefinition``), and what must live as long as it does.

    ``log``: what TensorRT had to say; its ``errors`` are the last few.
    """

    network: Any
    builder: Any
    parser: Any
    log: Any

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
        If the file is missing, is not ONNX, holds what TensorRT does not know (naming the node),
        does not take and give what a bundle's network does, or does not convolve in float16.
    EngineError
        If TensorRT does not start.
    """
    log = new_log(trt)
    try:
        builder = trt.Builder(log)
    except Exception as error:  # without a GPU driver: TypeError, from a null pointer
        raise EngineError(
            f"{flavour_of(trt)} {trt.__version__} does not start ({said(log) or error}): see "
            "whether nvidia-smi finds a GPU, and a driver that is new enough"
        ) from error
    # TensorRT 11 and RTX know no other networks, and ignore the flag.
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    parsed = Parsed(network := builder.create_network(typed), builder,
                    parser := trt.OnnxParser(network, log), log)  # fmt: skip
    if not path.is_file():
        raise BundleError(f"{path} does not exist: export the bundle again")
    # An empty file counts as parsed.
    if not parser.parse_from_file(str(path)) or not network.num_layers:
        raise BundleError(f"{path} {_first_error(parser)}")
    _check_ends(trt, path, network)
    _check_precision(trt, path, network)
    return parsed


def _first_error(parser: Any) -> str:
    """Where parsing failed first, after "FILE ...", with the repair."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    nodes = [error for error in errors if error.node_name() or error.node_operator()]
    if not nodes:
        why = f" ({brief(errors[0].desc())})" if errors else ""
        return f"is not a network, or is incomplete{why}: export the bundle again"
    more = f", and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    return (
        f"has a node that TensorRT cannot take: {nodes[0].node_name()} "
        f"({nodes[0].node_operator()}){more}: {brief(nodes[0].desc())}: export the bundle again, "
        "or update TensorRT"
    )


def _check_ends(trt: ModuleType, path: Path, network: Any) -> None:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for tensors, wanted, verb in ((inputs, _INPUTS, "takes"), (outputs, _OUTPUTS, "gives")):
        found = {tensor.name: (tensor.dtype.name, len(tensor.shape)) for tensor in tensors}
        if found != wanted:
            raise BundleError(
                f"{path} {verb} {_listed(found)}, a bundle's network {_listed(wanted)}: export the "
                "bundle again"
            )
    if [tensor.shape[0] for tensor in inputs] != [-1, -1] or min(inputs[0].shape[1:]) < 1:
        raise BundleError(f"{path} needs a free batch and fixed sizes: export the bundle again")


def _check_precision(trt: ModuleType, path: Path, network: Any) -> None:
    """Every convolution is in float16; what needs float32 is cast in the file."""
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
