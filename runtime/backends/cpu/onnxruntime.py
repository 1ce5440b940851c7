"""The network on the CPU in FP32, by ONNX Runtime."""

import os
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from ...util.optional import require
from ..base import Float32
from .checks import cannot_be, check_names, checked
from .threads import Predict, SharedBatch, splits_batches, usable_cores


def load_onnxruntime(extra: str = "cpu") -> ModuleType:
    """Import ONNX Runtime, the one place where that is done.

    Since 1.29 importing it writes a device ID to the home folder and reports usage, unless
    ``ORT_DISABLE_TELEMETRY`` is set before the import. The user's own setting is left alone.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require("onnxruntime", extra)


class OnnxDenoiser:
    """ONNX Runtime on the CPU, in FP32.

    ``threads``: how many the network may use, None for as many as there are cores. How they share
    a batch does not change a prediction; see :mod:`anofpdm.runtime.backends.cpu.threads`.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        cores = threads or usable_cores()
        self._predict: Predict
        if cores > 1 and splits_batches(path):
            one_thread = _OnnxSession(path, 1).predict
            whole = lambda: _OnnxSession(path, cores).predict  # noqa: E731
            self._predict = SharedBatch(one_thread, whole, cores)
        else:
            self._predict = _OnnxSession(path, cores).predict

    def __call__(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        return self._predict(x_t, t)


class _OnnxSession:
    """The network in one session, which many threads may run at once."""

    def __init__(self, path: Path, threads: int) -> None:
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise cannot_be(path, "loaded", error) from error
        ends = (*self._session.get_inputs(), *self._session.get_outputs())
        check_names(path, (end.name for end in ends))
        self._path = path

    def predict(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        try:
            eps = self._session.run(["eps_healthy", "eps_null"], {"x_t": x_t, "t": t - 1})
        except Exception as error:  # as above
            raise cannot_be(self._path, "run", error) from error
        return checked(self._path, x_t, eps[0]), checked(self._path, x_t, eps[1])
