"""The network as the runtime sees it: noisy slices in, two noise predictions out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .util.optional import require
from .ways import Predict, SharedBatch, usable_cores

Float32 = NDArray[np.float32]
BROKEN_NETWORK = "the network gives infinite or undefined predictions: export it again"
# Networks with larger files are not split: their layers spread well over threads.
_LARGEST_SPLIT = 64 << 20


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
    """ONNX Runtime on the CPU, in FP32.

    ``threads``: how many the network may use, None for as many as there are cores. How they share
    a batch does not change a prediction; see :mod:`anofpdm.runtime.ways`.
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
        """See :class:`Denoiser`."""
        return self._predict(x_t, t)


def splits_batches(path: Path) -> bool:
    """Whether the cores each take a part of the batch through this network."""
    return path.stat().st_size <= _LARGEST_SPLIT


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
        held = (*self._session.get_inputs(), *self._session.get_outputs())
        check_names(path, (one.name for one in held))
        self._path = path

    def predict(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        try:
            eps = self._session.run(["eps_healthy", "eps_null"], {"x_t": x_t, "t": t - 1})
        except Exception as error:  # as above
            raise cannot_be(self._path, "run", error) from error
        return checked(self._path, x_t, eps[0]), checked(self._path, x_t, eps[1])


def cannot_be(path: Path, done: str, error: Exception) -> BundleError:
    """What to say where a library cannot load or run a network."""
    lines = str(error).splitlines() or [type(error).__name__]
    return BundleError(f"{path} cannot be {done}: {lines[0]}: export it again")


def check_names(path: Path, held: Iterable[str]) -> None:
    """Raise BundleError unless these inputs and outputs are those of a network of ours."""
    if missing := sorted({"x_t", "t", "eps_healthy", "eps_null"} - set(held)):
        raise BundleError(f"{path} is no network of ours, it lacks {missing[0]}: export it again")


def checked(path: Path, x_t: Float32, eps: object) -> Float32:
    """A prediction, if it is one of the noise in ``x_t``: BundleError otherwise."""
    if not isinstance(eps, np.ndarray) or (eps.shape, eps.dtype) != (x_t.shape, np.float32):
        raise BundleError(f"{path} predicts no noise of slices: export it again")
    if not np.isfinite(eps).all():
        raise BundleError(BROKEN_NETWORK)
    return eps
