"""The FLOP of an ONNX graph."""

import math

from onnx import ModelProto

from anofpdm.runtime.backends.cpu.onnxruntime import load_onnxruntime


def flop(model: ModelProto) -> int:
    """Operations of all Conv, Gemm and MatMul nodes for a batch of 1, multiply and add apart;
    activations, normalisation and softmax are not counted. ValueError if a shape is not known."""
    load_onnxruntime()
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    fixed = ModelProto()
    fixed.CopyFrom(model)
    for value in [*fixed.graph.input, *fixed.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del fixed.graph.value_info[:]
    graph = SymbolicShapeInference.infer_shapes(fixed).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = [dim.dim_value for dim in dims]
    total = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        first, second, out = *node.input[:2], node.output[0]
        if not {first, second, out} <= shapes.keys():
            raise ValueError(f"the shapes of {node.name} cannot be inferred")
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        summands = shapes[first][0 if transposed else -1]
        if node.op_type == "Conv":
            summands = math.prod(shapes[second][1:])
        total += 2 * summands * math.prod(shapes[out])
    return total
