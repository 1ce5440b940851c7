"""Which device a bundle's network runs on, and why not another."""

from __future__ import annotations

import re

from ..bundle.bundle import Bundle
from ..errors import AnofpdmError, OptionsError
from .base import Backend
from .cpu.numpy_loop import NumpyBackend
from .cpu.onnxruntime import OnnxDenoiser
from .cpu.openvino import Bf16Denoiser
from .cpu.threads import splits_batches, usable_cores

DEVICES = "auto, cpu, cuda, trt, or cuda:1 and trt:1 for the second GPU"
_HOST_SLOTS, _MOST_HOST_SLOTS = 4, 32


def open_device(
    wish: str,
    bundle: Bundle,
    *,
    threads: int | None = None,
    slots: int | None = None,
    engines: bool = True,
    precision: str = "fp32",
) -> Backend:
    """Load a bundle's network on a device.

    Parameters
    ----------
    wish : ``trt``, a TensorRT engine of the bundle; ``cuda``, its FP32 network in ONNX Runtime;
        either with the whole forward process on the GPU, the first or the one named as ``cuda:1``;
        ``cpu``; or ``auto``, the first of these that can be used
    threads : of the CPU; None for as many as there are cores
    slots : how many slices share the network's batch; None for what suits the device
    engines : whether FP16 will do; not for calibrations, which are of the FP32 network
    precision : ``fp32``; ``bf16`` for calibrations made in it, which is for the CPU

    Returns
    -------
    A backend; its ``device`` says in a line what was taken, and for ``auto`` why nothing faster

    Raises
    ------
    DeviceError, MissingExtraError, BundleError
        If the device that was asked for cannot be used.
    OptionsError
        If there is no device of that name.
    """
    asked = re.fullmatch(r"(auto|cpu|cuda|trt)(?::(\d+))?", wish.lower())
    if not asked or (asked[1] in ("auto", "cpu") and asked[2]):
        raise OptionsError(f"device {wish!r} is none of {DEVICES}")
    kind, index = asked[1], int(asked[2] or 0)
    refused: dict[str, str] = {}
    if precision == "bf16" and kind not in ("auto", "cpu"):
        raise OptionsError(f"bf16 is for the CPU: choose a preset of the FP32 network for {wish}")
    if kind == "trt" and not engines:
        raise OptionsError(
            "thresholds are calibrated on the FP32 network: use cuda or cpu, not trt"
        )
    if precision == "bf16":
        network = Bf16Denoiser(bundle.network, threads)
        lowered = "cpu in bfloat16"
        return NumpyBackend(network, _slots(slots, threads, bundle), lowered, precision)
    if kind == "auto":
        for candidate in ("trt", "cuda") if engines else ("cuda",):
            try:
                return _open_gpu(candidate, index, bundle, slots)
            except AnofpdmError as error:
                refused[candidate] = str(error)
    elif kind != "cpu":
        return _open_gpu(kind, index, bundle, slots)
    on_the_cpu = OnnxDenoiser(bundle.network, threads)
    device = f"cpu{_because(refused)}"
    return NumpyBackend(on_the_cpu, _slots(slots, threads, bundle), device)


def _slots(wish: int | None, threads: int | None, bundle: Bundle) -> int:
    """On the CPU: a slice for each thread, where they take parts of the batch."""
    if wish is not None:
        return wish
    wanted = (threads or usable_cores()) if splits_batches(bundle.network) else 0
    return min(max(_HOST_SLOTS, wanted), _MOST_HOST_SLOTS)


def _because(refused: dict[str, str]) -> str:
    """Why not the devices before: each reason once."""
    reasons: dict[str, list[str]] = {}
    for kind, reason in refused.items():
        reasons.setdefault(reason, []).append(kind)
    return "".join(f"; not {' or '.join(kinds)}: {reason}" for reason, kinds in reasons.items())


def _open_gpu(kind: str, index: int, bundle: Bundle, slots: int | None) -> Backend:
    from .cuda.open import open_gpu

    return open_gpu(kind, index, bundle, slots)
