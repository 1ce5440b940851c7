"""The figures of an evaluation, and the tables that show them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .bootstrap import Interval


@dataclass(frozen=True)
class Scores:
    """Means of Dice and IoU, the same for empty masks, and AUPRC over the foreground's pixels.

    AUPRC is that of the smoothed anomaly map, which is what masks are cut from, whatever the
    decision; NaN without lesions. Intervals are 95 % ones over patients.
    """

    dice: float
    iou: float
    empty_dice: float
    empty_iou: float
    auprc: float
    dice_interval: Interval
    auprc_interval: Interval


@dataclass(frozen=True)
class SliceScores:
    """One slice: the label, the decision and its statistics, Dice without and with the decision, and
    how many timesteps were visited."""

    patient: str
    level: int
    unhealthy: bool
    called_unhealthy: bool
    cosine: float
    alignment: float
    map_peak: float
    probability: float
    dice: float
    gated_dice: float
    steps: int


@dataclass(frozen=True)
class DecisionScores:
    """One decision: accuracy with its 95 % interval over patients, sensitivity, specificity, and the
    area under the ROC curve of what it goes by."""

    accuracy: float
    accuracy_interval: Interval
    sensitivity: float
    specificity: float
    auroc: float


@dataclass(frozen=True)
class Evaluation:
    """Figures of a bundle on one split.

    ``unhealthy``: unhealthy slices, each segmented whatever the decision (the paper's set-up);
    ``unhealthy_gated``: the same slices, empty where the decision is healthy; ``mixed``: all slices,
    gated, where an empty mask on a healthy slice counts 1; ``patients``: gated, over all voxels of
    a patient, mean over the patients with a lesion. AUPRC is pooled over the slices, and for
    patients the mean of their own. ``decisions``: both, ``decision`` being the one in
    use, where slices may leave as healthy, too; ``unlike``: patients said to be unlike those of the
    calibration.
    """

    unhealthy: Scores
    unhealthy_gated: Scores
    mixed: Scores
    patients: Scores
    decision: str
    decisions: dict[str, DecisionScores]
    accuracy_all_healthy: float
    unlike: tuple[str, ...]
    slices: tuple[SliceScores, ...]

    @property
    def accuracy(self) -> float:
        """Of the decision in use."""
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
        patients = {one.patient for one in self.slices}
        sick = sum(one.unhealthy for one in self.slices)
        lines = [
            f"{len(self.slices)} slices of {len(patients)} patients, {sick} unhealthy; in brackets "
            "95 % intervals over patients (bootstrap)",
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
