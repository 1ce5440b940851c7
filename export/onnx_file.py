"""The ONNX file: export, check, and weights stored in float16."""

import io
import logging
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from anofpdm.runtime.errors import ParityError

from .both_labels import BothLabels

_SMALL = 1024


def export_onnx(network: BothLabels, path: Path, store_fp16: bool = False) -> None:
    """Write ``network`` as ONNX with a dynamic batch.

    Parameters
    ----------
    store_fp16 : store large float32 weights in float16 and cast them when the file is loaded; the
        network computes in float32 all the same

    Raises
    ------
    ParityError
        If the exporter fixed the batch.
    """
    config = network.unet.config
    inputs = {
        "x_t": torch.zeros(3, config.in_channels, config.image_size, config.image_size),
        "t": torch.zeros(3, dtype=torch.int64),
    }
    batch = torch.export.Dim("batch", min=1, max=4096)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=["eps_healthy", "eps_null"],
            dynamic_shapes=({0: batch}, {0: batch}),
            opset_version=18,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    forget_traces(model)
    if store_fp16:
        halve_weights(model)
    onnx.checker.check_model(model, full_check=True)
    for value in [*model.graph.input, *model.graph.output]:
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ParityError(f"the exporter fixed the batch of {value.name}")
    path.write_bytes(model.SerializeToString())


def forget_traces(model: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces, which contain paths of the machine."""
    graph = model.graph
    annotated = [graph, *graph.node, *graph.initializer, *graph.input, *graph.output,
                 *graph.value_info]  # fmt: skip
    for item in annotated:
        del item.metadata_props[:]
        item.doc_string = ""


def halve_weights(model: onnx.ModelProto) -> None:
    """Replace large float32 weights, in place, by float16 ones that a cast makes float32 again."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _SMALL:
            continue
        half = numpy_helper.to_array(tensor).astype(np.float16)
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_fp16"))
        casts.append(
            onnx.helper.make_node("Cast", [f"{name}_fp16"], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
