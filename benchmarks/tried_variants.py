"""What :mod:`tried` measures: other ways to run a bundle's network on one core of a CPU.

Each raises where it cannot be made; the message becomes the reason in its row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from quantised import quantised

from anofpdm.runtime.backends.base import Denoiser, Float32
from anofpdm.runtime.backends.cpu.onnxruntime import load_onnxruntime
from anofpdm.runtime.backends.cpu.openvino import load_openvino
from anofpdm.runtime.bundle.bundle import Bundle
from anofpdm.runtime.errors import AnofpdmError
from anofpdm.runtime.util.optional import require

Int64 = np.ndarray[Any, np.dtype[np.int64]]
OUTPUTS = ("eps_healthy", "eps_null")
SLOTS = 4
_NHWC = ((0, 2, 3, 1), (0, 3, 1, 2))  # there and back


@dataclass(frozen=True)
class SlicePosition:
    """``bundle``: whose network; ``folder``: where files may be made."""

    bundle: Bundle
    folder: Path


class OnnxRuntime:
    """A denoiser (:class:`anofpdm.runtime.backends.base.Denoiser`) as the runtime makes it, on one
    thread; ``change`` may alter the session's options.

    ``nodes``: of its graph after ONNX Runtime has optimised it, how many of each kind.
    """

    def __init__(self, path: Path, change: Callable[[Any], None] = lambda options: None) -> None:
        ort, optimised = load_onnxruntime(), path.with_suffix(".optimised")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = str(optimised)
        change(options)
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.nodes = kinds(onnx.load(optimised))

    def __call__(self, x_t: Float32, t: Int64) -> tuple[Float32, Float32]:
        """See :class:`anofpdm.runtime.backends.base.Denoiser`."""
        healthy, null = self._session.run(OUTPUTS, {"x_t": x_t, "t": t - 1})
        return healthy, null


def kinds(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes of each kind; kinds that are not ONNX's carry their domain, and those that
    take channels last say so."""
    found: Counter[str] = Counter()
    for node in model.graph.node:
        domain = f"{node.domain}." if node.domain else ""
        last = any(one.name == "channels_last" and one.i for one in node.attribute)
        found[f"{domain}{node.op_type}{' (channels last)' if last else ''}"] += 1
    return found


class OpenVino:
    """A denoiser in OpenVINO, on one thread.

    ``precision``: its hint, ``f32``, ``bf16`` or ``f16``; ``batch``: compiled for this one alone,
    smaller ones are filled up, or for any.
    """

    def __init__(self, path: Path, precision: str, batch: int | None = None) -> None:
        openvino, self._batch = load_openvino(), batch
        core = openvino.Core()
        model = core.read_model(str(path))
        if batch:
            shapes = {one.any_name: one.partial_shape for one in model.inputs}
            for shape in shapes.values():
                shape[0] = batch
            model.reshape(shapes)
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": 1,
            "ENABLE_CPU_PINNING": False,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()

    def __call__(self, x_t: Float32, t: Int64) -> tuple[Float32, Float32]:
        """See :class:`anofpdm.runtime.backends.base.Denoiser`."""
        count = len(t)
        if self._batch:
            rows = np.minimum(np.arange(self._batch), count - 1)
            x_t, t = x_t[rows], t[rows]
        found = self._request.infer({"x_t": x_t, "t": t - 1})
        healthy, null = (np.array(found[name])[:count] for name in OUTPUTS)
        return healthy, null


def channels_last(model: onnx.ModelProto) -> None:
    """Let every 2-D convolution with a bias, in place, be ONNX Runtime's one for channels last."""
    ranks = {one.name: len(one.dims) for one in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Conv" or ranks.get(node.input[1]) != 4:
            nodes.append(node)
            continue
        there, back, x, y = *_NHWC, node.input[0], node.output[0]
        nodes.append(helper.make_node("Transpose", [x], [f"{y}_there"], perm=there))
        node.op_type, node.domain = "NhwcFusedConv", "com.microsoft"
        node.input[0], node.output[0] = f"{y}_there", f"{y}_back"
        nodes += [node, helper.make_node("Transpose", [f"{y}_back"], [y], perm=back)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def plain(place: SlicePosition) -> Path:
    """The network with its weights in float32, after ONNX Runtime's simplest optimisations, which
    leave nodes of ONNX alone; made once."""
    path = place.folder / "plain.onnx"
    if not path.exists():
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(str(place.bundle.network), options, providers=["CPUExecutionProvider"])
    return path


def _copied(place: SlicePosition, network: Path, name: str) -> Path:
    """A copy in the folder, beside which an optimised graph may be written."""
    path = place.folder / f"{name}.onnx"
    path.write_bytes(network.read_bytes())
    return path


def _shipped(change: Callable[[Any], None] = lambda options: None) -> Callable[[SlicePosition], Denoiser]:
    return lambda place: OnnxRuntime(_copied(place, place.bundle.network, "shipped"), change)


def _slimmed(place: SlicePosition) -> Denoiser:
    path = place.folder / "slim.onnx"
    onnx.save(require("onnxslim", None).slim(onnx.load(place.bundle.network)), path)
    return OnnxRuntime(path)


def _unblocked(options: Any) -> None:
    levels = load_onnxruntime().GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED


def _channels_last(place: SlicePosition) -> Denoiser:
    model, path = onnx.load(plain(place)), place.folder / "nhwc.onnx"
    channels_last(model)
    onnx.save(model, path)
    return OnnxRuntime(path)


def _flushed(options: Any) -> None:
    options.add_session_config_entry("session.set_denormal_as_zero", "1")


def _without_arena(options: Any) -> None:
    options.enable_cpu_mem_arena = False


def _half(place: SlicePosition) -> Denoiser:
    network = place.bundle.network_fp16
    if not network:
        raise AnofpdmError("the bundle has no float16 network")
    return OnnxRuntime(_copied(place, network, "half"))


def _openvino(precision: str, batch: int | None = None) -> Callable[[SlicePosition], Denoiser]:
    return lambda place: OpenVino(place.bundle.network, precision, batch)


def _int8(place: SlicePosition, kinds: tuple[str, ...]) -> Path:
    path = place.folder / f"int8-{'-'.join(kinds)}.onnx"
    if not path.exists():
        quantised(plain(place), path, place.bundle, kinds)
    return path


_CONV, _PRODUCTS = ("Conv",), ("Conv", "MatMul")


@dataclass(frozen=True)
class Variant:
    """``make``: a denoiser; ``batch``: how many slices share it."""

    make: Callable[[SlicePosition], Denoiser]
    batch: int = SLOTS


SHIPPED = f"ONNX Runtime, batch {SLOTS} (as shipped)"
VARIANTS: Mapping[str, Variant] = {
    SHIPPED: Variant(_shipped()),
    "batch 1": Variant(_shipped(), 1),
    "batch 2": Variant(_shipped(), 2),
    "batch 8": Variant(_shipped(), 8),
    "graph cleaned by onnxslim": Variant(_slimmed),
    "channels in blocks (NCHWc) forbidden": Variant(_shipped(_unblocked)),
    "channels last (NHWC)": Variant(_channels_last),
    "denormals flushed": Variant(_shipped(_flushed)),
    "no memory arena": Variant(_shipped(_without_arena)),
    "float16 network": Variant(_half),
    "OpenVINO, f32": Variant(_openvino("f32")),
    "OpenVINO, f32, batch fixed": Variant(_openvino("f32", SLOTS)),
    "OpenVINO, bf16": Variant(_openvino("bf16")),
    "OpenVINO, bf16, batch fixed": Variant(_openvino("bf16", SLOTS)),
    "OpenVINO, f16, batch fixed": Variant(_openvino("f16", SLOTS)),
    "int8 Conv": Variant(lambda place: OnnxRuntime(_int8(place, _CONV))),
    "int8 Conv and MatMul": Variant(lambda place: OnnxRuntime(_int8(place, _PRODUCTS))),
    "int8 Conv, OpenVINO, batch fixed": Variant(
        lambda place: OpenVino(_int8(place, _CONV), "f32", SLOTS)
    ),
    "int8 Conv and MatMul, OpenVINO, batch fixed": Variant(
        lambda place: OpenVino(_int8(place, _PRODUCTS), "f32", SLOTS)
    ),
}
