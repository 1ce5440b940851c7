"""Storing the common weights of two networks of a bundle once."""

from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

from anofpdm.runtime.util.files import sha256

_SMALL_BYTES = 1024


def share_weights(path: Path, other: Path) -> None:
    """Replace the weights of a network that are bytes of another file by references to them.

    They become external data of ONNX. Offsets are not aligned, which ONNX recommends for mapping
    files into memory; ONNX Runtime and TensorRT-RTX read them all the same. The network's
    properties get the SHA-256 of the other file, so that its hash changes with the weights.

    Parameters
    ----------
    path : the network, rewritten
    other : a file in the same folder
    """
    content, model, shared = other.read_bytes(), onnx.load(path), False
    for tensor in model.graph.initializer:
        length = len(tensor.raw_data)
        at = content.find(tensor.raw_data) if length >= _SMALL_BYTES else -1
        if at >= 0:
            set_external_data(tensor, other.name, offset=at, length=length)
            tensor.ClearField("raw_data")
            shared = True
    if shared:
        onnx.helper.set_model_props(model, {"weights_sha256": sha256(other)})
        path.write_bytes(model.SerializeToString())
