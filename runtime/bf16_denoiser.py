"""The FP32 network computed in bfloat16 on the CPU, by OpenVINO: an extra, and an opt-in.

Weights and activations are rounded to 8 bits of mantissa, sums stay in FP32: some three times as
fast where the CPU has instructions for it (AMX or AVX-512 BF16). The difference of two predictions,
which M_t is made of, feels that: calibrations of the FP32 network do not hold, so bfloat16 runs
with calibrations of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .denoiser import cannot_be, check_names, checked
from .errors import DeviceError
from .extras import require
from .ways import Fastest, InParts, Predict, usable_cores

Float32 = NDArray[np.float32]


class Bf16Denoiser:
    """See :class:`anofpdm.runtime.denoiser.Denoiser`.

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
        openvino = require("openvino", "bf16")
        core, cores = openvino.Core(), threads or usable_cores()
        if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise DeviceError(
                "this CPU does not compute in bfloat16: choose a preset of the FP32 network"
            )
        together = _Compiled(openvino, core, path, threads=cores, streams=1)
        ways: dict[str, Callable[[], Predict]] = {"together": lambda: together.predict}
        if cores > 1:
            ways["in parts"] = lambda: InParts(
                _Compiled(openvino, core, path, threads=cores, streams=cores).predict, cores
            )
        self._predict = Fastest(ways)

    def __call__(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        """See :class:`anofpdm.runtime.denoiser.Denoiser`."""
        return self._predict(x_t, t)


class _Compiled:
    """The network compiled for ``streams`` threads at once, each with its share of ``threads``."""

    def __init__(
        self, openvino: ModuleType, core: Any, path: Path, *, threads: int, streams: int
    ) -> None:
        how = {
            "INFERENCE_PRECISION_HINT": openvino.Type.bf16,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
        }
        try:
            model = core.read_model(path)
            check_names(path, (name for one in _ends(model) for name in one.get_names()))
            self._model = core.compile_model(model, "CPU", how)
        except RuntimeError as error:  # what OpenVINO raises
            raise cannot_be(path, "loaded", error) from error
        self._path, self._own = path, threading.local()

    def predict(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        if not hasattr(self._own, "request"):  # one a thread
            self._own.request = self._model.create_infer_request()
        try:
            eps = self._own.request.infer({"x_t": x_t, "t": t - 1}, share_outputs=False)
        except RuntimeError as error:  # as above
            raise cannot_be(self._path, "run", error) from error
        healthy, null = (
            checked(self._path, x_t, np.array(eps[name])) for name in ("eps_healthy", "eps_null")
        )
        return healthy, null


def _ends(model: Any) -> list[Any]:
    return [*model.inputs, *model.outputs]
