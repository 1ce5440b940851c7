"""A bundle without its weights, small enough to carry to a machine without a network, and with
random ones again: speed does not depend on them, and the FP16 network still has an FP32 twin."""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from anofpdm.runtime.bundle.bundle import MANIFEST, NETWORK, NETWORK_FP16
from anofpdm.runtime.util.files import sha256

_WEIGHTS, _LARGE = "weights.json", 1024


def strip_weights(bundle: Path, skeleton: Path) -> None:
    """Copy a bundle, its large weights replaced by their shapes, means and deviations."""
    skeleton.mkdir(parents=True)
    shutil.copy(bundle / MANIFEST, skeleton)
    weights: dict[str, dict[str, object]] = {}
    for name in (NETWORK, NETWORK_FP16):
        model, described = onnx.load(bundle / name), {}
        twins = weights.get(NETWORK, {})
        for tensor in list(model.graph.initializer):
            values = numpy_helper.to_array(tensor)
            if values.size < _LARGE or values.dtype.kind != "f":
                continue
            mean, deviation = (float(f(values, dtype=np.float64)) for f in (np.mean, np.std))
            shape = {"shape": values.shape, "dtype": values.dtype.name}
            described[tensor.name] = {**shape, "mean": mean, "deviation": deviation}
            # Weights that the two networks share must be shared again.
            twin = twins.get(tensor.name, twins.get(f"{tensor.name}_fp16", {}))
            described[tensor.name] |= {k: twin[k] for k in ("mean", "deviation") if k in twin}
            model.graph.initializer.remove(tensor)
        weights[name] = described
        (skeleton / name).write_bytes(model.SerializeToString())
    (skeleton / _WEIGHTS).write_text(json.dumps(weights), encoding="utf-8")


def fill_weights(skeleton: Path, bundle: Path) -> None:
    """A bundle with random weights: the same in both networks, and every time."""
    bundle.mkdir(parents=True)
    manifest = json.loads((skeleton / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"] = {}
    for network, described in json.loads((skeleton / _WEIGHTS).read_text()).items():
        model = onnx.load(skeleton / network)
        for name, weight in described.items():
            # Weights that are stored in FP16 in the FP32 network have this at their end.
            rng = np.random.default_rng(zlib.crc32(name.removesuffix("_fp16").encode()))
            values = rng.standard_normal(weight["shape"], np.float32)
            values = values * np.float32(weight["deviation"]) + np.float32(weight["mean"])
            made = numpy_helper.from_array(values.astype(weight["dtype"]), name)
            model.graph.initializer.append(made)
        (bundle / network).write_bytes(model.SerializeToString())
        manifest["files"][network] = sha256(bundle / network)
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
