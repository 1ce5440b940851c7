"""How good a bundle is on labelled slices with reference masks."""

from __future__ import annotations

import math
from collections.abc import Callable
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


@dataclass(frozen=True)
class Scores:
    """Mean Dice and IoU over slices, or Dice and IoU over the voxels of patients."""

    dice: float
    iou: float


@dataclass(frozen=True)
class Evaluation:
    """Figures of a bundle on one split, each with the all-empty predictor's beside it where apt.

    ``unhealthy``: unhealthy slices, each segmented whatever the verdict (the paper's set-up);
    ``unhealthy_gated``: the same slices, empty where the verdict is healthy; ``mixed``: all slices,
    gated, an empty mask on a healthy slice counting 1; ``mixed_empty``: the same for empty masks;
    ``patients``: gated, over all voxels of a patient, mean over patients with a lesion.
    ``auprc``: over the foreground pixels of unhealthy slices, pooled; ``auprc_mean``: the mean of
    the slices' own. ``accuracy``, ``sensitivity``, ``specificity``, ``auroc``: of the verdict and
    of the cosine.
    """

    slices: int
    unhealthy_slices: int
    n_patients: int
    unhealthy: Scores
    unhealthy_gated: Scores
    unhealthy_empty: Scores
    mixed: Scores
    mixed_empty: Scores
    patients: Scores
    auprc: float
    auprc_mean: float
    accuracy: float
    accuracy_all_healthy: float
    sensitivity: float
    specificity: float
    auroc: float

    def as_json(self) -> dict[str, Any]:
        """Nested dictionaries; NaN becomes None."""
        return {key: _without_nan(value) for key, value in asdict(self).items()}

    def table(self) -> str:
        """A Markdown table."""
        rows = [
            ("unhealthy slices, every one segmented", self.unhealthy, self.unhealthy_empty),
            ("unhealthy slices, gated by the verdict", self.unhealthy_gated, self.unhealthy_empty),
            ("all slices (mixed), gated", self.mixed, self.mixed_empty),
            ("per patient (3-D), gated", self.patients, Scores(0.0, 0.0)),
        ]
        lines = [
            f"{self.slices} slices of {self.n_patients} patients, {self.unhealthy_slices} "
            "unhealthy",
            "",
            "| | Dice | IoU | Dice of empty masks |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {name} | {s.dice:.3f} | {s.iou:.3f} | {empty.dice:.3f} |" for name, s, empty in rows
        ]
        lines += [
            "",
            "| | |",
            "|---|---|",
            f"| AUPRC, foreground of unhealthy slices, pooled | {self.auprc:.3f} |",
            f"| AUPRC, mean over unhealthy slices | {self.auprc_mean:.3f} |",
            f"| image-level accuracy (calling all healthy) | {self.accuracy:.3f} "
            f"({self.accuracy_all_healthy:.3f}) |",
            f"| sensitivity, specificity | {self.sensitivity:.3f}, {self.specificity:.3f} |",
            f"| area under the ROC curve of the cosine | {self.auroc:.3f} |",
        ]
        return "\n".join(lines)


def evaluate(
    segmenter: Segmenter,
    slices: SliceSet,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Segment labelled slices and compare with their masks, on the model's grid.

    Raises
    ------
    CohortError
        If the slices have no masks.
    """
    if slices.masks is None:
        raise CohortError("the slices have no reference masks: nothing to compare with")
    n, shape = len(slices), slices.masks.shape[1:]
    masks = np.zeros((n, *shape), bool)
    called, cosines = np.zeros(n, bool), np.zeros(n)
    maps: dict[int, NDArray[np.float32]] = {}
    unhealthy, reference = slices.unhealthy, np.asarray(slices.masks, bool)
    stream = segmenter.analyse(Slice(i, slices.x0(i)) for i in range(n))
    for done, result in enumerate(stream, start=1):
        masks[result.key], called[result.key] = result.mask, result.unhealthy
        cosines[result.key] = result.cosine
        if unhealthy[result.key]:
            maps[result.key] = smooth(result.H)
        progress(done, n)
    gated = masks & called[:, None, None]
    empty = np.zeros_like(masks)
    foreground = {i: slices.x0(i).mean(axis=0) > _FOREGROUND for i in maps}
    pixels = [(maps[i][foreground[i]], reference[i][foreground[i]]) for i in sorted(maps)]
    pooled = [np.concatenate(parts) for parts in zip(*pixels, strict=True)] if pixels else None
    return Evaluation(
        slices=n,
        unhealthy_slices=int(unhealthy.sum()),
        n_patients=len(set(slices.patients)),
        unhealthy=_mean(masks[unhealthy], reference[unhealthy]),
        unhealthy_gated=_mean(gated[unhealthy], reference[unhealthy]),
        unhealthy_empty=_mean(empty[unhealthy], reference[unhealthy]),
        mixed=_mean(gated, reference),
        mixed_empty=_mean(empty, reference),
        patients=_per_patient(gated, reference, slices.patients),
        auprc=average_precision(pooled[0], pooled[1]) if pooled else math.nan,
        auprc_mean=_nanmean([average_precision(s, r) for s, r in pixels]),
        accuracy=float((called == unhealthy).mean()),
        accuracy_all_healthy=float((~unhealthy).mean()),
        sensitivity=_nanmean(called[unhealthy]),
        specificity=_nanmean(~called[~unhealthy]),
        auroc=area_under_roc(-cosines, unhealthy),
    )


def _mean(masks: NDArray[np.bool_], reference: NDArray[np.bool_]) -> Scores:
    pairs = list(zip(masks, reference, strict=True))
    return Scores(
        _nanmean([dice(mask, drawn) for mask, drawn in pairs]),
        _nanmean([iou(mask, drawn) for mask, drawn in pairs]),
    )


def _per_patient(
    masks: NDArray[np.bool_], reference: NDArray[np.bool_], patients: NDArray[np.str_]
) -> Scores:
    volumes = [
        (masks[patients == name], reference[patients == name]) for name in np.unique(patients)
    ]
    pairs = [(mask, drawn) for mask, drawn in volumes if drawn.any()]
    return Scores(
        _nanmean([dice(mask, drawn) for mask, drawn in pairs]),
        _nanmean([iou(mask, drawn) for mask, drawn in pairs]),
    )


def _nanmean(values: list[float] | NDArray[np.bool_]) -> float:
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else math.nan


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
