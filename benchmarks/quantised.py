"""A network whose convolutions and products are computed in 8 bits, quantised after training."""

from __future__ import annotations

import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from anofpdm.export.parity import Trial
from anofpdm.export.phantom import phantom_slices
from anofpdm.runtime.backends.base import Float32
from anofpdm.runtime.backends.cpu.onnxruntime import load_onnxruntime
from anofpdm.runtime.bundle.bundle import Bundle
from anofpdm.runtime.method.noise import slice_noise
from anofpdm.runtime.method.process import Process

# Not the slices, nor the noise, that networks are compared on.
_COUNT, _SEED = 8, 1


def quantised(path: Path, output: Path, bundle: Bundle, kinds: tuple[str, ...]) -> None:
    """Write a network with all nodes of these kinds, but the first and last convolution, in 8 bits.

    Weights are quantised symmetrically per channel, what flows between nodes by the range that it
    has on noisy phantoms at the visited timesteps. Where the CPU has instructions for products of
    unsigned and signed numbers, these are used: uint8 for what flows, int8 for weights.
    """
    load_onnxruntime()
    from onnxruntime.quantization import QDQQuantizer, QuantType

    logging.getLogger().setLevel(logging.ERROR)
    trial, model = Trial.of(bundle), onnx.load(path)
    feeds = calibration_feeds(trial.recipe.process, trial.x0.shape[1], trial.x0.shape[2])
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    quantizer = QDQQuantizer(
        model,
        True,  # weights per channel
        False,  # of 8 bits, not 7
        QuantType.QInt8,
        QuantType.QUInt8,
        ranges(path, feeds, kinds),
        [],
        [convolutions[0], convolutions[-1]],
        list(kinds),
        {"WeightSymmetric": True},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(output))


def calibration_feeds(process: Process, channels: int, size: int) -> list[dict[str, Any]]:
    """Eight phantoms at every visited timestep, as the network is fed."""
    x0 = phantom_slices(_COUNT, channels, size, seed=_SEED)
    return [
        {"x_t": noised(x0, process, int(t)), "t": np.full(_COUNT, t - 1)} for t in process.timesteps
    ]


def noised(x0: Float32, process: Process, t: int) -> Float32:
    """(n, C, H, W) clean slices at timestep t (eq. 2)."""
    abar = process.schedule.abar[t - 1]
    noise = np.stack([slice_noise(_SEED, key, t, x.shape) for key, x in enumerate(x0)])
    noisy = math.sqrt(abar) * x0 + math.sqrt(1 - abar) * noise
    return noisy.astype(np.float32)


def ranges(path: Path, feeds: list[dict[str, Any]], kinds: tuple[str, ...]) -> Any:
    """The smallest and largest value of everything that enters or leaves nodes of these kinds.

    What ``quantize_static`` does, which would use as many threads as there are cores.
    """
    ort = load_onnxruntime()
    from onnxruntime.quantization.calibrate import CalibrationDataReader, MinMaxCalibrater

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        left = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder:
        augmented = Path(folder, "augmented.onnx")
        calibrater = MinMaxCalibrater(str(path), list(kinds), str(augmented))
        calibrater.augment_graph()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        calibrater.infer_session = ort.InferenceSession(
            str(augmented), options, providers=["CPUExecutionProvider"]
        )
        calibrater.collect_data(Reader())
        return calibrater.compute_data()
