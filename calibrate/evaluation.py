"""How good a bundle is on labelled slices whose lesions were drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.forward import Slice
from anofpdm.runtime.postprocess import smooth
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.sliceset import SliceSet

from .metrics import area_under_roc, average_precision, dice, iou

_FOREGROUND = -0.95
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """Means of Dice and IoU, the same for empty masks, and AUPRC over the foreground's pixels.

    AUPRC is that of the smoothed anomaly map, which is what masks are cut from, whatever the
    verdict; NaN without lesions.
    """

    dice: float
    iou: float
    empty_dice: float
    empty_iou: float
    auprc: float


@dataclass(frozen=True)
class SliceScores:
    """One slice: the label, the verdict and its statistics, Dice without and with the verdict, and
    how many timesteps were visited."""

    patient: str
    level: int
    unhealthy: bool
    called_unhealthy: bool
    cosine: float
    peak: float
    dice: float
    gated_dice: float
    steps: int


@dataclass(frozen=True)
class Evaluation:
    """Figures of a bundle on one split.

    ``unhealthy``: unhealthy slices, each segmented whatever the verdict (the paper's set-up);
    ``unhealthy_gated``: the same slices, empty where the verdict is healthy; ``mixed``: all slices,
    gated, where an empty mask on a healthy slice counts 1; ``patients``: gated, over all voxels of
    a patient, mean over the patients with a lesion. AUPRC is pooled over the slices, and for
    patients the mean of their own. ``auroc_cosine``, ``auroc_map``: of either verdict's statistic.
    """

    unhealthy: Scores
    unhealthy_gated: Scores
    mixed: Scores
    patients: Scores
    accuracy: float
    accuracy_all_healthy: float
    sensitivity: float
    specificity: float
    auroc_cosine: float
    auroc_map: float
    slices: tuple[SliceScores, ...]

    def as_json(self) -> dict[str, Any]:
        """Nested dictionaries; NaN becomes None."""
        return {key: _without_nan(value) for key, value in asdict(self).items()}

    def table(self) -> str:
        """Two Markdown tables."""
        rows = [
            ("unhealthy slices, every one segmented", self.unhealthy),
            ("unhealthy slices, gated by the verdict", self.unhealthy_gated),
            ("all slices (mixed), gated", self.mixed),
            ("per patient (3-D), gated", self.patients),
        ]
        patients = {one.patient for one in self.slices}
        sick = sum(one.unhealthy for one in self.slices)
        lines = [
            f"{len(self.slices)} slices of {len(patients)} patients, {sick} unhealthy",
            "",
            "| | Dice | IoU | AUPRC | Dice, IoU of empty masks |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {name} | {s.dice:.3f} | {s.iou:.3f} | {s.auprc:.3f} | "
            f"{s.empty_dice:.3f}, {s.empty_iou:.3f} |"
            for name, s in rows
        ]
        lines += [
            "",
            "| healthy or unhealthy | |",
            "|---|---|",
            f"| accuracy (calling all healthy) | {self.accuracy:.3f} "
            f"({self.accuracy_all_healthy:.3f}) |",
            f"| sensitivity, specificity | {self.sensitivity:.3f}, {self.specificity:.3f} |",
            f"| area under the ROC curve: cosine, 99 % quantile of H | {self.auroc_cosine:.3f}, "
            f"{self.auroc_map:.3f} |",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Seen:
    """What one slice contributes; ``scores``: the map's foreground pixels, ``positive``: lesion."""

    mask: Mask
    gated: Mask
    drawn: Mask
    scores: NDArray[np.float32]
    positive: Mask


def evaluate(
    segmenter: Segmenter,
    slices: SliceSet,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Segment labelled slices and compare with their masks, on the model's grid.

    Slices whose lesions were not drawn are left out.

    Raises
    ------
    CohortError
        If none were drawn.
    """
    drawn = [i for i, record in enumerate(slices.records) if record.drawn]
    if not drawn:
        raise CohortError("the slices have no reference masks: nothing to compare with")
    slices = slices.take(drawn)
    seen: dict[int, _Seen] = {}
    rows: dict[int, SliceScores] = {}
    for result in segmenter.analyse(Slice(i, slices.x0(i)) for i in range(len(slices))):
        i = result.key
        record, reference = slices.records[i], slices.mask(i)
        foreground = slices.x0(i).mean(axis=0) > _FOREGROUND
        gated = result.mask & result.unhealthy
        seen[i] = _Seen(
            result.mask, gated, reference, smooth(result.H)[foreground], reference[foreground]
        )
        rows[i] = SliceScores(
            record.patient,
            record.level,
            record.unhealthy,
            result.unhealthy,
            result.cosine,
            result.peak,
            dice(result.mask, reference),
            dice(gated, reference),
            len(result.M),
        )
        progress(len(seen), len(slices))
    ordered = tuple(rows[i] for i in range(len(slices)))
    unhealthy, cosines = slices.unhealthy, np.array([row.cosine for row in ordered])
    peaks = np.array([row.peak for row in ordered])
    called = np.array([row.called_unhealthy for row in ordered])
    sick = [seen[i] for i in np.flatnonzero(unhealthy).tolist()]
    everything = [seen[i] for i in range(len(slices))]
    heads = [
        [seen[i] for i in np.flatnonzero(slices.patients == name).tolist()]
        for name in np.unique(slices.patients)
    ]
    heads = [head for head in heads if any(one.drawn.any() for one in head)]
    volumes = [
        (np.stack([one.gated for one in head]), np.stack([one.drawn for one in head]))
        for head in heads
    ]
    return Evaluation(
        unhealthy=_scores([(s.mask, s.drawn) for s in sick], _auprc(sick)),
        unhealthy_gated=_scores([(s.gated, s.drawn) for s in sick], _auprc(sick)),
        mixed=_scores([(s.gated, s.drawn) for s in everything], _auprc(everything)),
        patients=_scores(volumes, _mean(_auprc(head) for head in heads)),
        accuracy=float((called == unhealthy).mean()),
        accuracy_all_healthy=float((~unhealthy).mean()),
        sensitivity=_mean(called[unhealthy]),
        specificity=_mean(~called[~unhealthy]),
        auroc_cosine=area_under_roc(-cosines, unhealthy),
        auroc_map=area_under_roc(peaks, unhealthy),
        slices=ordered,
    )


def _scores(pairs: list[tuple[Mask, Mask]], auprc: float) -> Scores:
    nothing = [(np.zeros_like(drawn), drawn) for _, drawn in pairs]
    return Scores(
        dice=_mean(dice(*pair) for pair in pairs),
        iou=_mean(iou(*pair) for pair in pairs),
        empty_dice=_mean(dice(*pair) for pair in nothing),
        empty_iou=_mean(iou(*pair) for pair in nothing),
        auprc=auprc,
    )


def _auprc(seen: list[_Seen]) -> float:
    if not seen:
        return math.nan
    scores = np.concatenate([one.scores for one in seen])
    return average_precision(scores, np.concatenate([one.positive for one in seen]))


def _mean(values: Iterable[float]) -> float:
    known = [float(value) for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
