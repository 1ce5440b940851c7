"""Weights that two networks of a bundle have in common are stored once."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

from anofpdm.runtime.util.files import sha256

_SMALL_BYTES = 1024


def share_weights(path: Path, holder: Path) -> None:
    """Leave out of the network ``path`` what the file ``holder``, in the same folder, holds byte by
    byte: its tensors say where there, which is ONNX's external data. Offsets are not aligned, which
    ONNX recommends for mapping files into memory; ONNX Runtime and TensorRT-RTX read them so.

    The network then names the SHA-256 of ``holder``, so that its own changes with the weights.
    """
    held, model, found = holder.read_bytes(), onnx.load(path), False
    for tensor in model.graph.initializer:
        length = len(tensor.raw_data)
        at = held.find(tensor.raw_data) if length >= _SMALL_BYTES else -1
        if at >= 0:
            set_external_data(tensor, holder.name, offset=at, length=length)
            tensor.ClearField("raw_data")
            found = True
    if found:
        onnx.helper.set_model_props(model, {"weights_sha256": sha256(holder)})
        path.write_bytes(model.SerializeToString())
