"""Which device a bundle's network runs on, and why not another."""

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
    device: str,
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
    device : ``trt``, a TensorRT engine of the bundle; ``cuda``, its FP32 network in ONNX Runtime;
        either with the whole forward process on the GPU, the first or the one named as ``cuda:1``;
        ``cpu``; or ``auto``, the first of these that can be used
    threads : of the CPU; None for as many as there are cores
    slots : how many slices share the network's batch; None for what suits the device
    engines : whether FP16 will do; not for calibrations, which are of the FP32 network
    precision : ``fp32``; ``bf16`` for calibrations made in it, which is for the CPU

    Returns
    -------
    A backend; its ``device`` names what it runs on, and for ``auto`` why nothing faster

    Raises
    ------
    DeviceError, MissingExtraError, BundleError
        If the named device cannot be used.
    OptionsError
        If there is no device of that name.
    """
    match = re.fullmatch(r"(auto|cpu|cuda|trt)(?::(\d+))?", device.lower())
    if not match or (match[1] in ("auto", "cpu") and match[2]):
        raise OptionsError(f"device {device!r} is none of {DEVICES}")
    kind, index = match[1], int(match[2] or 0)
    reasons: dict[str, str] = {}
    if precision == "bf16" and kind not in ("auto", "cpu"):
        raise OptionsError(f"bf16 is for the CPU: choose a preset of the FP32 network for {device}")
    if kind == "trt" and not engines:
        raise OptionsError(
            "thresholds are calibrated on the FP32 network: use cuda or cpu, not trt"
        )
    if precision == "bf16":
        bf16 = Bf16Denoiser(bundle.network, threads)
        return NumpyBackend(bf16, _slots(slots, threads, bundle), "cpu in bfloat16", precision)
    if kind == "auto":
        for candidate in ("trt", "cuda") if engines else ("cuda",):
            try:
                return _open_gpu(candidate, index, bundle, slots)
            except AnofpdmError as error:
                reasons[candidate] = str(error)
    elif kind != "cpu":
        return _open_gpu(kind, index, bundle, slots)
    fp32 = OnnxDenoiser(bundle.network, threads)
    return NumpyBackend(fp32, _slots(slots, threads, bundle), f"cpu{_because(reasons)}")


def _slots(slots: int | None, threads: int | None, bundle: Bundle) -> int:
    """On the CPU: a slice for each thread, where they take parts of the batch."""
    if slots is not None:
        return slots
    parts = (threads or usable_cores()) if splits_batches(bundle.network) else 0
    return min(max(_HOST_SLOTS, parts), _MOST_HOST_SLOTS)


def _because(reasons: dict[str, str]) -> str:
    """Why not the devices before, by device: each reason once."""
    devices: dict[str, list[str]] = {}
    for device, reason in reasons.items():
        devices.setdefault(reason, []).append(device)
    return "".join(f"; not {' or '.join(names)}: {reason}" for reason, names in devices.items())


def _open_gpu(kind: str, index: int, bundle: Bundle, slots: int | None) -> Backend:
    from .cuda.open import open_gpu

    return open_gpu(kind, index, bundle, slots)
