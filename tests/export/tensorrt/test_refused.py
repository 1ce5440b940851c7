"""Networks that no engine is built of, and what is said: TensorRT's own parser reads them."""

import onnx
import pytest
from onnx import TensorProto, helper
from recorded_tensorrt import LIGHT

from anofpdm.export.tensorrt.build import build_engine
from anofpdm.runtime.bundle.bundle import DEFAULT, NETWORK, NETWORK_FP16
from anofpdm.runtime.errors import BundleError


def network(change):
    """The light network with something changed."""
    model = onnx.load(LIGHT)
    change(model.graph)
    return model.SerializeToString()


def unknown(graph):
    for node in [node for node in graph.node if node.op_type == "Sigmoid"][3:6]:
        node.op_type = "Frobnicate"


def dangling(graph):
    next(node for node in graph.node if node.op_type == "Conv").input[1] = "nowhere"


def renamed(graph):
    graph.input[0].name = "x"
    for node in graph.node:
        node.input[:] = ["x" if name == "x_t" else name for name in node.input]


def narrow_t(graph):
    graph.input[1].type.tensor_type.elem_type = TensorProto.INT32


def half_x(graph):
    graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def lacking(graph):
    del graph.output[1]


def fixed(graph):
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 2


def free(graph):
    graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"


def one_in_float(graph):
    """A convolution that is cast to float32 and back."""
    at = next(i for i, node in enumerate(graph.node) if node.op_type == "Conv")
    conv = graph.node[at]
    nodes = list(graph.node)
    casts = [
        helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT)
        for name in conv.input
    ]
    back = helper.make_node("Cast", ["conv_float"], list(conv.output), to=TensorProto.FLOAT16)
    conv.input[:] = [f"{name}_float" for name in conv.input]
    conv.output[:] = ["conv_float"]
    nodes[at : at + 1] = [*casts, conv, back]
    del graph.node[:]
    graph.node.extend(nodes)


def no_convolution(graph):
    """Only what the inputs and outputs are."""
    del graph.node[:]
    graph.node.extend(helper.make_node("Identity", ["x_t"], [out.name]) for out in graph.output)
    del graph.initializer[:]


def three_outputs(graph):
    graph.node.append(helper.make_node("Identity", ["x_t"], ["more"]))
    graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, None))


def three_axes(graph):
    no_convolution(graph)
    for value in (graph.input[0], *graph.output):
        del value.type.tensor_type.shape.dim[3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: LIGHT.read_bytes()[:70_000], "or is incomplete .*Failed to parse the ONNX"),
        (LIGHT.read_bytes, "is not a network, or is incomplete .*convertOnnxWeights"),  # alone
        (lambda: b"not a network", "is not a network, or is incomplete .*Failed to parse the ONNX"),
        (lambda: b"", "is not a network, or is incomplete: export"),
        (
            lambda: network(unknown),
            r"has a node that TensorRT cannot take: node_Sigmoid_\d+ \(Frobnicate\), and 2 more: "
            ".*Plugin not found",
        ),
        (lambda: network(dangling), r"cannot take: node_conv2d \(Conv\): .*was not registered"),
        (lambda: (DEFAULT / NETWORK).read_bytes(), r"FP16 network \(0 of 43 convolutions are"),
        (lambda: network(one_in_float), r"not a typed FP16 network \(42 of 43 convolutions are"),
        (lambda: network(no_convolution), r"not a typed FP16 network \(0 of 0 convolutions are"),
        (
            lambda: network(renamed),
            r"takes x \(FLOAT, 4 axes\), t \(INT64, 1 axes\), a bundle's network x_t \(FLOAT",
        ),
        (lambda: network(narrow_t), r"takes x_t \(FLOAT, 4 axes\), t \(INT32, 1 axes\), a bundle"),
        (lambda: network(half_x), r"has a node that TensorRT cannot take|takes x_t \(HALF, 4"),
        (
            lambda: network(lacking),
            r"gives eps_healthy \(FLOAT, 4 axes\), a bundle's network eps_h",
        ),
        (lambda: network(three_outputs), r"gives eps_healthy .*, more \(FLOAT, 4 axes\), a bundle"),
        (lambda: network(three_axes), r"takes x_t \(FLOAT, 3 axes\), t .*, a bundle's network x_t"),
        (lambda: network(fixed), "needs a free batch and fixed sizes"),
        (lambda: network(free), "needs a free batch and fixed sizes"),
    ],
)
def test_what_is_not_an_fp16_network(trt, tmp_path, content, message):
    path = tmp_path / NETWORK_FP16
    path.write_bytes(content())
    with pytest.raises(BundleError, match=message) as caught:
        build_engine(trt, path, (1,))
    line = str(caught.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    assert len(line) < len(str(path)) + 400
    assert "export the bundle again" in line


def test_a_missing_network(trt, tmp_path):
    with pytest.raises(BundleError, match=f"{NETWORK_FP16} does not exist: export"):
        build_engine(trt, tmp_path / NETWORK_FP16, (1,))
