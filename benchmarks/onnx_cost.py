"""What an ONNX graph costs: its nodes, and its FLOP from the shapes of its products."""

from __future__ import annotations

import math
from pathlib import Path

import onnx


def flop(path: Path) -> int:
    """Operations of all Conv, Gemm and MatMul nodes for a batch of 1, multiply and add apart.

    Raises
    ------
    ValueError
        If the shape of such a node cannot be inferred, or there is a node of a kind not known.
    """
    model = onnx.load(path)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = model.graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = [dim.dim_value for dim in dims]
    total = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            if node.op_type in ("ConvTranspose", "Einsum", "Attention") or node.domain:
                raise ValueError(f"the cost of {node.op_type} is not known")
            continue
        first, second, out = *node.input[:2], node.output[0]
        if not {first, second, out} <= shapes.keys():
            raise ValueError(f"the shapes of {node.name} ({node.op_type}) cannot be inferred")
        if node.op_type == "Conv":
            products = math.prod(shapes[second][1:])
        elif node.op_type == "Gemm":
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            products = shapes[first][0 if transposed else 1]
        else:
            products = shapes[first][-1]
        total += 2 * products * math.prod(shapes[out])
    return total


def nodes(path: Path) -> int:
    """Nodes of the graph."""
    return len(onnx.load(path, load_external_data=False).graph.node)
