"""Quality of a network alone: calibrated and evaluated on the same slices, in PyTorch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from anofpdm.calibrate.choose import Labels, choose
from anofpdm.calibrate.evaluation import evaluate
from anofpdm.calibrate.peaks import peak_report
from anofpdm.calibrate.sweep import sweep
from anofpdm.export.both_labels import torch_denoiser
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.bundle import NETWORK, Bundle, Manifest
from anofpdm.runtime.bundle.calibration import Calibration
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.method.process import Process
from anofpdm.runtime.method.schedule import Schedule
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.train.dataset import SliceSet
from anofpdm.train.unet import UNet

_PROCESS = Process(Schedule(), L=501, stride=50, spacing="log-snr")
W = (1.0, 2.0, 4.0, 8.0, 20.0)
_SLOTS = 16


def assess(network: UNet, slices: SliceSet, every: int, w: tuple[float, ...] = W) -> dict[str, Any]:
    """Of every k-th slice, alone, by the first modality; ``w``: the candidates. ``accuracy`` is on
    patients left out of the decision's fit; ``dice``, ``auprc``: of unhealthy slices."""
    slices, denoiser = slices.take(range(0, len(slices), every)), torch_denoiser(network)
    progress = ProgressLine("slices")
    curves = sweep(slices, denoiser, _PROCESS, w, (0,), slots=_SLOTS, progress=progress)
    labels = Labels(slices.unhealthy, slices.patients)
    best = choose({_PROCESS.L: curves}, labels, "calibrated").best
    peaks = peak_report(curves, best.w, labels)
    names = slices.modalities
    manifest = Manifest("network", names, names[:1], slices.grid, _PROCESS.schedule, _PROCESS.L,
                        _PROCESS.clip, "fp32", files={NETWORK: "0" * 64})  # fmt: skip
    empty = Bundle(Path("network"), manifest)
    conditions = empty.conditions(_PROCESS.encoding, _PROCESS.L, _PROCESS.stride, _PROCESS.spacing)
    fast = Calibration(best.w, best.Cos_w, best.logistic, best.M_max, conditions, "calibrated")
    bundle = replace(empty, calibrations={"fast": fast}, default="fast")
    result = evaluate(Segmenter(bundle, NumpyBackend(denoiser, _SLOTS)), slices)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "w": best.w, "slices": len(slices), "unhealthy": int(slices.unhealthy.sum()),
        "accuracy": best.calibrated_accuracy, "accuracy_cosine": best.cosine_accuracy,
        "auroc": result.decisions["calibrated"].auroc,
        "auroc_cosine": result.decisions["cosine"].auroc,
        "t_e": peaks.unhealthy_t_e, "at_L": peaks.at_L,
        "dice": result.unhealthy.dice, "auprc": result.unhealthy.auprc,
    }  # fmt: skip
