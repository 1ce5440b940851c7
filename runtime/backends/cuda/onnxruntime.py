"""ONNX Runtime on a GPU, on the device loop's stream and memory."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import QUOTED, AnofpdmError, BundleError, DeviceError, one_line
from ..cpu.onnxruntime import load_onnxruntime
from .device import Gpu, short_of_memory
from .network import Tensors

_PROVIDER, _MEMORY = "CUDAExecutionProvider", "cuda"


class OrtNetwork:
    """The network in ONNX Runtime's CUDA provider; its graphs cannot be part of the loop's.

    Raises
    ------
    DeviceError
        If ONNX Runtime cannot use the GPU; it would go on with the CPU and say nothing.
    """

    capturable = False
    longest = None

    def __init__(self, gpu: Gpu, path: Path) -> None:
        self._gpu, self._ort = gpu, load_onnxruntime("gpu")
        self.version = str(self._ort.__version__)
        if hasattr(self._ort, "preload_dlls"):
            # CUDA and cuDNN from their wheels, where these are installed; it prints what is not.
            with redirect_stdout(io.StringIO()):
                self._ort.preload_dlls()
        if _PROVIDER not in self._ort.get_available_providers():
            raise DeviceError(
                "this ONNX Runtime is built for the CPU only: run pip uninstall onnxruntime "
                "onnxruntime-gpu, then pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        self._run_options = self._ort.RunOptions()
        # The stream keeps the order; the host goes on.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._path = path
        self._session: Any = self._load()

    def _load(self) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 4
        provider = {
            "device_id": str(self._gpu.index),
            "user_compute_stream": str(self._gpu.stream),
            "use_tf32": "0",  # FP32 that agrees with the CPU
            # No search for every batch size at every start, and no more memory than needed.
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
        }
        providers = [(_PROVIDER, provider), "CPUExecutionProvider"]
        try:
            with self._gpu.current():
                session = self._ort.InferenceSession(
                    str(self._path), options, providers=providers, enable_fallback=0
                )
        except AnofpdmError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise _as_ours(error, f"{self._path} cannot be loaded") from error
        used = session.get_providers()
        if used[0] != _PROVIDER:
            raise DeviceError(
                f"ONNX Runtime fell back to {used[0]}: CUDA 13 or cuDNN 9 cannot be loaded; run "
                "pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        return session

    def widths(self, slots: int) -> tuple[int, ...]:
        """One slot, a quarter of the slots, and all of them."""
        return tuple(sorted({1, -(-slots // 4), slots}))

    def bind(self, tensors: Tensors, width: int) -> Callable[[], None]:
        """Bind the first ``width`` slots by their address; loads the session again if need be."""
        if self._session is None:
            self._session = self._load()
        session, binding = self._session, self._session.io_binding()
        for name, array in (("x_t", tensors.x_t), ("t", tensors.t)):
            part = array[:width]
            binding.bind_input(name, _MEMORY, self._gpu.index, part.dtype.type, part.shape,
                               part.address)  # fmt: skip
        for name, array in (("eps_healthy", tensors.eps_healthy), ("eps_null", tensors.eps_null)):
            part = array[:width]
            binding.bind_output(name, _MEMORY, self._gpu.index, np.float32, part.shape,
                                part.address)  # fmt: skip

        def predict() -> None:
            try:
                with self._gpu.current():
                    session.run_with_iobinding(binding, self._run_options)
            except AnofpdmError:
                raise
            except Exception as error:
                raise _as_ours(error, "the network cannot be run") from error

        return predict

    def release(self) -> None:
        """Drop the session, which keeps what it has allocated; the next binding loads it again."""
        self._session = None

    def close(self) -> None:
        """Drop the session."""
        self._session = None


def _as_ours(error: Exception, failure: str) -> Exception:
    """ONNX Runtime's error as one of this package."""
    text = one_line(error)
    signs = ("failed to allocate", "out of memory", "alloc_failed")
    if any(sign in text.lower() for sign in signs):
        return short_of_memory()
    reason = one_line(error, QUOTED)
    if "CUDA" in text or "CUDNN" in text or "CUBLAS" in text:
        return DeviceError(f"{failure} ({reason}): try again, or use --device cpu")
    return BundleError(f"{failure} ({reason}): export it again")
