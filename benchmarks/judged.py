"""How good a network is by itself: calibrated and evaluated on the same slices, in torch."""

from __future__ import annotations

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


def judged(network: UNet, slices: SliceSet, every: int, w: tuple[float, ...] = W) -> dict[str, Any]:
    """Of every k-th slice, alone; what comes first of the modalities is scored. ``w``: the
    candidates.

    ``accuracy`` is on patients left out of the decision's fit, at the w that is chosen; ``dice`` and
    ``auprc`` are those of unhealthy slices, each segmented.
    """
    labelled = slices.take(range(0, len(slices), every))
    denoiser = torch_denoiser(network)
    curves = sweep(labelled, denoiser, _PROCESS, w, (0,), slots=_SLOTS,
                   progress=ProgressLine("slices"))  # fmt: skip
    labels = Labels(labelled.unhealthy, labelled.patients)
    best = choose({_PROCESS.L: curves}, labels, "calibrated").best
    peaks = peak_report(curves, best.w, labels)
    names = labelled.modalities
    manifest = Manifest("network", names, names[:1], labelled.grid, _PROCESS.schedule, _PROCESS.L,
                        _PROCESS.clip, "fp32", files={NETWORK: "0" * 64})  # fmt: skip
    empty = Bundle(Path("network"), manifest)
    conditions = empty.conditions(_PROCESS.encoding, _PROCESS.L, _PROCESS.stride, _PROCESS.spacing)
    held = Calibration(best.w, best.Cos_w, best.logistic, best.M_max, conditions, "calibrated")
    bundle = replace(empty, calibrations={"fast": held}, default="fast")
    found = evaluate(Segmenter(bundle, NumpyBackend(denoiser, _SLOTS)), labelled)
    return {
        "w": best.w,
        "slices": len(labelled),
        "unhealthy": int(labelled.unhealthy.sum()),
        "accuracy": best.calibrated_accuracy,
        "accuracy_cosine": best.cosine_accuracy,
        "auroc": found.decisions["calibrated"].auroc,
        "auroc_cosine": found.decisions["cosine"].auroc,
        "t_e": peaks.unhealthy_t_e,
        "at_L": peaks.at_L,
        "dice": found.unhealthy.dice,
        "auprc": found.unhealthy.auprc,
    }
