"""Evaluation of a bundle on slices with reference masks."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.method.decision import probability
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.refine.through_plane import reach
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.train.dataset import SliceSet

from .bootstrap import Bootstrap, Interval
from .metrics import area_under_roc, average_precision, dice, iou
from .scores import DecisionScores, Evaluation, Scores, SliceScores

_FOREGROUND = -0.95
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _SliceResult:
    """The result and the reference of one slice, for the metrics."""

    patient: str  # name of the patient
    mask: Mask  # (S, S) whatever the decision
    gated: Mask  # (S, S) empty where the decision is healthy
    reference: Mask  # (S, S) drawn lesions
    scores: NDArray[np.float32]  # (p,) smoothed anomaly map at the foreground pixels
    positive: Mask  # (p,) reference at these pixels
    MSE_0: NDArray[np.float64]  # (n, C) error of the unguided prediction (eq. 16)


def evaluate(
    segmenter: Segmenter,
    slices: SliceSet,
    progress: Callable[[int, int], None] = lambda done, total: None,
    every: int = 1,
) -> Evaluation:
    """Segment slices and compare them with their reference masks, on the model's grid.

    Slices without a reference mask are skipped.

    Parameters
    ----------
    progress : called with the slices compared and their total
    every : compare every k-th slice only; its neighbours are processed as well where the
        calibration averages over them

    Raises
    ------
    CohortError
        If no slice has a reference mask, or the calibration averages over neighbours and the
        distance between slices is unknown.
    """
    drawn = [i for i, record in enumerate(slices.records) if record.drawn]
    if not drawn:
        raise CohortError("the slices have no reference masks: nothing to compare with")
    slices = slices.take(drawn)
    calibration = segmenter.plan.calibration
    slices.require_spacing(calibration.neighbours_mm)
    compared = range(0, len(slices), every)
    stream = _with_neighbours(slices, compared, calibration.neighbours_mm)
    results: dict[int, _SliceResult] = {}
    rows: dict[int, SliceScores] = {}
    for result in segmenter.segment_slices(stream):
        i = result.key
        if i not in compared:
            continue
        record, reference = slices.records[i], slices.mask(i)
        foreground = slices.x0(i).mean(axis=0) > _FOREGROUND
        gated = result.mask & result.unhealthy
        results[i] = _SliceResult(
            record.patient,
            result.mask,
            gated,
            reference,
            result.smoothed[foreground],
            reference[foreground],
            result.MSE_0,
        )
        rows[i] = SliceScores(
            record.patient,
            record.level,
            record.unhealthy,
            result.unhealthy,
            result.cosine,
            result.alignment,
            result.map_peak,
            probability(result.log_odds),
            dice(result.mask, reference),
            dice(gated, reference),
            len(result.M),
        )
        progress(len(results), len(compared))
    slices = slices.take(compared)
    ordered = tuple(rows[i] for i in compared)
    everything = [results[i] for i in compared]
    boot, by_patient = Bootstrap(slices.patients), _by_patient(everything)
    unhealthy = [result for result, row in zip(everything, ordered, strict=True) if row.unhealthy]
    margins: dict[str, Callable[[SliceScores], float]] = {
        "cosine": lambda row: calibration.Cos_w - row.cosine,
        "calibrated": lambda row: row.probability - 0.5,
    }
    plausibility = calibration.plausibility
    return Evaluation(
        unhealthy=_over_slices(boot, unhealthy, gated=False),
        unhealthy_gated=_over_slices(boot, unhealthy, gated=True),
        mixed=_over_slices(boot, everything, gated=True),
        patients=_over_patients(boot, by_patient),
        decision=calibration.decision,
        decisions={
            name: _decision(boot, ordered, margin, in_use=name == calibration.decision)
            for name, margin in margins.items()
        },
        accuracy_all_healthy=float((~slices.unhealthy).mean()),
        implausible=tuple(
            name
            for name, volume in by_patient.items()
            if plausibility and plausibility.excess([result.MSE_0 for result in volume]) > 1
        ),
        slices=ordered,
    )


def _with_neighbours(slices: SliceSet, compared: range, width_mm: float) -> Iterator[Slice]:
    """The compared slices, and their neighbours within ``width_mm``."""
    processed = set(compared)
    for i in compared:
        far = reach(width_mm, slices.records[i].slice_mm)
        processed.update(range(max(0, i - far), min(len(slices), i + far + 1)))
    return (item for item in slices.slices() if item.key in processed)


def _by_patient(results: list[_SliceResult]) -> dict[str, list[_SliceResult]]:
    by_patient: dict[str, list[_SliceResult]] = {}
    for result in results:
        by_patient.setdefault(result.patient, []).append(result)
    return dict(sorted(by_patient.items()))


def _over_slices(boot: Bootstrap, results: list[_SliceResult], *, gated: bool) -> Scores:
    pairs = [(result.gated if gated else result.mask, result.reference) for result in results]
    patients = np.array([result.patient for result in results], str)
    scores, positive = [r.scores for r in results], [r.positive for r in results]
    interval = boot.average_precision(patients, scores, positive)
    return _scores(boot, patients, pairs, _auprc(results), interval)


def _over_patients(boot: Bootstrap, by_patient: dict[str, list[_SliceResult]]) -> Scores:
    with_lesion = {
        name: volume
        for name, volume in by_patient.items()
        if any(result.reference.any() for result in volume)
    }
    pairs = [
        (np.stack([r.gated for r in volume]), np.stack([r.reference for r in volume]))
        for volume in with_lesion.values()
    ]
    patients = np.array(list(with_lesion), str)
    areas = np.array([_auprc(volume) for volume in with_lesion.values()])
    return _scores(boot, patients, pairs, _mean(areas), boot.mean(patients, areas))


def _scores(
    boot: Bootstrap,
    patients: NDArray[np.str_],
    pairs: Sequence[tuple[Mask, Mask]],
    auprc: float,
    auprc_interval: Interval,
) -> Scores:
    empty = [(np.zeros_like(reference), reference) for _, reference in pairs]
    overlaps = np.array([dice(*pair) for pair in pairs])
    return Scores(
        dice=_mean(overlaps),
        iou=_mean(iou(*pair) for pair in pairs),
        empty_dice=_mean(dice(*pair) for pair in empty),
        empty_iou=_mean(iou(*pair) for pair in empty),
        auprc=auprc,
        dice_interval=boot.mean(patients, overlaps),
        auprc_interval=auprc_interval,
    )


def _decision(
    boot: Bootstrap,
    rows: Sequence[SliceScores],
    margin: Callable[[SliceScores], float],
    in_use: bool,
) -> DecisionScores:
    """Metrics of the decision that calls a slice unhealthy where ``margin`` is at least 0; of the
    results themselves where it is ``in_use``."""
    margins = np.array([margin(row) for row in rows])
    unhealthy = np.array([row.unhealthy for row in rows])
    called = np.array([row.called_unhealthy for row in rows]) if in_use else margins >= 0
    correct = called == unhealthy
    return DecisionScores(
        accuracy=float(correct.mean()),
        accuracy_interval=boot.mean(np.array([row.patient for row in rows], str), correct),
        sensitivity=_mean(called[unhealthy]),
        specificity=_mean(~called[~unhealthy]),
        auroc=area_under_roc(margins, unhealthy),
    )


def _auprc(results: list[_SliceResult]) -> float:
    if not results:
        return math.nan
    scores = np.concatenate([result.scores for result in results])
    return average_precision(scores, np.concatenate([result.positive for result in results]))


def _mean(values: Iterable[float]) -> float:
    finite = [float(value) for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
