"""The FP32 network computed in bfloat16 on the CPU, by OpenVINO: an extra, and an opt-in.

Weights and activations are rounded to 8 bits of mantissa, sums stay in FP32: more than three times
as fast where the CPU has instructions for it (AMX or AVX-512 BF16). The difference of two
predictions, which M_t is made of, feels that: calibrations of the FP32 network do not hold, so
bfloat16 runs with calibrations of its own.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DeviceError
from ...util.optional import require
from .checks import cannot_be, check_names, checked
from .threads import Predict, SharedBatch, splits_batches, usable_cores

Float32 = NDArray[np.float32]


def load_openvino() -> ModuleType:
    """Import OpenVINO, the one place where that is done.

    Importing it writes to the home folder and reports to its makers, unless its telemetry package
    cannot be imported: so that is hidden meanwhile.
    """
    hidden = "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return require("openvino", "bf16")
    finally:
        if hidden:
            del sys.modules["openvino_telemetry"]


class Bf16Denoiser:
    """OpenVINO on the CPU, in bfloat16.

    ``threads``: how many the network may use, None for as many as there are cores.

    Raises
    ------
    BundleError
        If the network cannot be loaded.
    DeviceError
        If the CPU does not compute in bfloat16.
    MissingExtraError
        If OpenVINO is not installed.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        openvino = load_openvino()
        core, cores = openvino.Core(), threads or usable_cores()
        if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise DeviceError(
                "this CPU does not compute in bfloat16: choose a preset of the FP32 network"
            )

        def compiled(streams: int) -> Predict:
            return _Compiled(openvino, core, path, threads=cores, streams=streams).predict

        self._predict: Predict
        if cores > 1 and splits_batches(path):
            self._predict = SharedBatch(compiled(cores), lambda: compiled(1), cores)
        else:
            self._predict = compiled(1)

    def __call__(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        return self._predict(x_t, t)


class _Compiled:
    """The network compiled for ``streams`` threads at once, each with its share of ``threads``.

    It is faster where the batch is known, and compiled for 1, 2, 4, ... slices, when they come.
    """

    def __init__(
        self, openvino: ModuleType, core: Any, path: Path, *, threads: int, streams: int
    ) -> None:
        self._options = {
            "INFERENCE_PRECISION_HINT": openvino.Type.bf16,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,  # other processes would be pinned to the same cores
        }
        self._core, self._path = core, path
        self._models: dict[int, Any] = {}
        self._lock, self._local = threading.Lock(), threading.local()
        self._compiled(1)  # a network that is none is refused at once

    def predict(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        pieces, first = [], 0
        while first < len(x_t):
            count = 1 << (len(x_t) - first).bit_length() - 1
            pieces.append(self._infer(x_t[first : first + count], t[first : first + count]))
            first += count
        healthy, null = zip(*pieces, strict=True)
        return np.concatenate(healthy), np.concatenate(null)

    def _infer(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        with self._errors("run"):
            eps = self._request(len(x_t)).infer({"x_t": x_t, "t": t - 1}, share_outputs=True)
        # Views of memory that is used again: `predict` copies them.
        healthy, null = eps["eps_healthy"], eps["eps_null"]
        return checked(self._path, x_t, healthy), checked(self._path, x_t, null)

    def _request(self, batch: int) -> Any:
        """One a thread and batch size."""
        requests: dict[int, Any] = self._local.__dict__.setdefault("requests", {})
        if batch not in requests:
            requests[batch] = self._compiled(batch).create_infer_request()
        return requests[batch]

    def _compiled(self, batch: int) -> Any:
        with self._lock:
            if batch not in self._models:
                with self._errors("loaded"):
                    self._models[batch] = self._compile(batch)
            return self._models[batch]

    def _compile(self, batch: int) -> Any:
        model, fixed = self._core.read_model(self._path), {}
        ends = (*model.inputs, *model.outputs)
        check_names(self._path, (name for end in ends for name in end.get_names()))
        for end in model.inputs:
            shape = end.partial_shape
            shape[0] = batch
            fixed[end.get_any_name()] = shape
        model.reshape(fixed)
        return self._core.compile_model(model, "CPU", self._options)

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what OpenVINO raises
            raise cannot_be(self._path, action, error) from error
