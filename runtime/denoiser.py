"""The network as the runtime sees it: noisy slices in, two noise predictions out."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .extras import require

Float32 = NDArray[np.float32]
BROKEN_NETWORK = "the network gives infinite or undefined predictions: export it again"


class Denoiser(Protocol):
    """Predicts the noise in x_t with the label *healthy* and with the null label."""

    def __call__(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        """Both predictions for a batch whose samples may stand at different timesteps.

        Parameters
        ----------
        x_t : (B, C, H, W) float32
        t : (B,) int64, 1-based timesteps

        Returns
        -------
        eps_healthy, eps_null : (B, C, H, W) float32
        """
        ...


def load_onnxruntime(extra: str = "cpu") -> ModuleType:
    """Import ONNX Runtime, the one place where that is done.

    Since 1.29 importing it writes a device ID to the home folder and reports usage, unless
    ``ORT_DISABLE_TELEMETRY`` is set before the import. The user's own setting is left alone.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return require("onnxruntime", extra)


class OnnxDenoiser:
    """ONNX Runtime on the CPU.

    ``threads``: how many the network may use, None for as many as there are cores.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            reason = str(error).splitlines()[0]
            raise BundleError(f"{path} cannot be loaded: {reason}: export it again") from error
        held = {one.name for one in (*self._session.get_inputs(), *self._session.get_outputs())}
        if missing := sorted({"x_t", "t", "eps_healthy", "eps_null"} - held):
            raise BundleError(
                f"{path} is no network of ours, it lacks {missing[0]}: export it again"
            )
        self._path = path

    def __call__(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        """See :class:`Denoiser`."""
        feed = {"x_t": x_t, "t": t - 1}
        try:
            eps_healthy, eps_null = self._session.run(["eps_healthy", "eps_null"], feed)
        except Exception as error:  # as above
            reason = str(error).splitlines()[0]
            raise BundleError(f"{self._path} cannot be run: {reason}: export it again") from error
        for eps in (eps_healthy, eps_null):
            if not isinstance(eps, np.ndarray) or (eps.shape, eps.dtype) != (x_t.shape, np.float32):
                raise BundleError(f"{self._path} predicts no noise of slices: export it again")
        if not (np.isfinite(eps_healthy).all() and np.isfinite(eps_null).all()):
            raise BundleError(BROKEN_NETWORK)
        return eps_healthy, eps_null
