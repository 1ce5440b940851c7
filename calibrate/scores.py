"""The metrics of an evaluation, and their tables."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from .bootstrap import Interval


@dataclass(frozen=True)
class Scores:
    """Segmentation metrics, NaN where there is no lesion; intervals are 95 % ones over patients."""

    dice: float  # mean over slices or patients
    iou: float  # mean over slices or patients
    empty_dice: float  # Dice of masks without a voxel, for comparison
    empty_iou: float  # IoU of masks without a voxel
    auprc: float  # of the foreground pixels of the smoothed anomaly map, not gated
    dice_interval: Interval  # of dice
    auprc_interval: Interval  # of auprc


@dataclass(frozen=True)
class SliceScores:
    """The label, decision and metrics of one slice."""

    patient: str  # name of the patient
    level: int  # axial index in the scan
    unhealthy: bool  # label
    called_unhealthy: bool  # image-level decision
    cosine: float  # statistic of the paper's decision (eq. 18)
    alignment: float  # of guidance with the unguided error, -1..1
    map_peak: float  # ln of the map's largest value
    probability: float  # of being unhealthy, by the calibrated decision
    dice: float  # of the mask whatever the decision
    gated_dice: float  # of the mask that is empty where the decision is healthy
    steps: int  # visited timesteps


@dataclass(frozen=True)
class DecisionScores:
    """Metrics of one image-level decision over slices."""

    accuracy: float  # share of slices with the right decision
    accuracy_interval: Interval  # 95 % over patients
    sensitivity: float  # share of the unhealthy slices
    specificity: float  # share of the healthy slices
    auroc: float  # area under the ROC curve of the decision's statistic


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a bundle on one split.

    Gated masks are empty where the decision is healthy. An empty mask on a healthy slice has Dice
    1. AUPRC is pooled over slices; for patients it is the mean of each patient's AUPRC.
    """

    unhealthy: Scores  # unhealthy slices, not gated (the paper's set-up)
    unhealthy_gated: Scores  # unhealthy slices, gated
    mixed: Scores  # all slices, gated
    patients: Scores  # all voxels of a patient, gated; mean over patients with a lesion
    decision: str  # the decision in use, cosine or calibrated
    decisions: dict[str, DecisionScores]  # both decisions, by name
    accuracy_all_healthy: float  # of calling every slice healthy
    implausible: tuple[str, ...]  # patients out of the calibration's distribution
    slices: tuple[SliceScores, ...]  # every compared slice, in order

    @property
    def accuracy(self) -> float:
        """Accuracy of the decision in use."""
        return self.decisions[self.decision].accuracy

    def as_json(self) -> dict[str, Any]:
        """Nested dictionaries; NaN becomes None."""
        return {key: _without_nan(value) for key, value in asdict(self).items()}

    def table(self) -> str:
        """Two Markdown tables."""
        rows = [
            ("unhealthy slices, every one segmented", self.unhealthy),
            ("unhealthy slices, gated by the decision", self.unhealthy_gated),
            ("all slices (mixed), gated", self.mixed),
            ("per patient (3-D), gated", self.patients),
        ]
        patients = {scores.patient for scores in self.slices}
        unhealthy = sum(scores.unhealthy for scores in self.slices)
        lines = [
            f"{len(self.slices)} slices of {len(patients)} patients, {unhealthy} unhealthy; in "
            "brackets 95 % intervals over patients (bootstrap)",
            "",
            "| | Dice | IoU | AUPRC | Dice, IoU of empty masks |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {name} | {_with(s.dice, s.dice_interval)} | {s.iou:.3f} | "
            f"{_with(s.auprc, s.auprc_interval)} | {s.empty_dice:.3f}, {s.empty_iou:.3f} |"
            for name, s in rows
        ]
        lines += [
            "",
            "| healthy or unhealthy | accuracy | sensitivity, specificity | area under ROC |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {name}{', in use' if name == self.decision else ''} | "
            f"{_with(v.accuracy, v.accuracy_interval)} | "
            f"{v.sensitivity:.3f}, {v.specificity:.3f} | {v.auroc:.3f} |"
            for name, v in self.decisions.items()
        ]
        lines += [f"| calling all healthy | {self.accuracy_all_healthy:.3f} | 0.000, 1.000 | |"]
        return "\n".join(lines)


def _with(value: float, interval: Interval) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
