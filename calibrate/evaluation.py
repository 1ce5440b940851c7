"""How good a bundle is on labelled slices whose lesions were drawn."""

from __future__ import annotations

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
from .labelled import check_spacing
from .metrics import area_under_roc, average_precision, dice, iou
from .scores import DecisionScores, Evaluation, Scores, SliceScores

_FOREGROUND = -0.95
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _Seen:
    """What one slice contributes; ``scores``: the map's foreground pixels, ``positive``: lesion."""

    patient: str
    mask: Mask
    gated: Mask
    drawn: Mask
    scores: NDArray[np.float32]
    positive: Mask
    MSE_0: NDArray[np.float64]


def evaluate(
    segmenter: Segmenter,
    slices: SliceSet,
    progress: Callable[[int, int], None] = lambda done, total: None,
    every: int = 1,
) -> Evaluation:
    """Segment labelled slices and compare with their masks, on the model's grid.

    Slices whose lesions were not drawn are left out; of the others every ``every``-th one is
    compared, and those beside it are processed for its sake where neighbours count.

    Raises
    ------
    CohortError
        If none were drawn, or neighbours count and it is not known how far slices are apart.
    """
    drawn = [i for i, record in enumerate(slices.records) if record.drawn]
    if not drawn:
        raise CohortError("the slices have no reference masks: nothing to compare with")
    slices = slices.take(drawn)
    check_spacing(slices, segmenter.plan.calibration.neighbours_mm)
    compared = range(0, len(slices), every)
    stream = _with_neighbours(slices, compared, segmenter.plan.calibration.neighbours_mm)
    seen: dict[int, _Seen] = {}
    rows: dict[int, SliceScores] = {}
    for result in segmenter.segment_slices(stream):
        i = result.key
        if i not in compared:
            continue
        record, reference = slices.records[i], slices.mask(i)
        foreground = slices.x0(i).mean(axis=0) > _FOREGROUND
        gated = result.mask & result.unhealthy
        seen[i] = _Seen(
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
        progress(len(seen), len(compared))
    slices = slices.take(compared)
    ordered = tuple(rows[i] for i in compared)
    everything = [seen[i] for i in compared]
    boot, heads = Bootstrap(slices.patients), _by_patient(everything)
    sick = [one for one, row in zip(everything, ordered, strict=True) if row.unhealthy]
    margins: dict[str, Callable[[SliceScores], float]] = {
        "cosine": lambda row: calibration.Cos_w - row.cosine,
        "calibrated": lambda row: row.probability - 0.5,
    }
    calibration, known = segmenter.plan.calibration, segmenter.plan.calibration.plausibility
    return Evaluation(
        unhealthy=_over_slices(boot, sick, gated=False),
        unhealthy_gated=_over_slices(boot, sick, gated=True),
        mixed=_over_slices(boot, everything, gated=True),
        patients=_over_patients(boot, heads),
        decision=calibration.decision,
        decisions={
            name: _decision(boot, ordered, margin, in_use=name == calibration.decision)
            for name, margin in margins.items()
        },
        accuracy_all_healthy=float((~slices.unhealthy).mean()),
        unlike=tuple(
            name
            for name, head in heads.items()
            if known and known.excess([one.MSE_0 for one in head]) > 1
        ),
        slices=ordered,
    )


def _with_neighbours(slices: SliceSet, compared: range, width_mm: float) -> Iterator[Slice]:
    """The slices that are compared, and those beside them that count."""
    wanted = set(compared)
    for i in compared:
        far = reach(width_mm, slices.records[i].slice_mm)
        wanted.update(range(max(0, i - far), min(len(slices), i + far + 1)))
    return (one for one in slices.slices() if one.key in wanted)


def _by_patient(seen: list[_Seen]) -> dict[str, list[_Seen]]:
    heads: dict[str, list[_Seen]] = {}
    for one in seen:
        heads.setdefault(one.patient, []).append(one)
    return dict(sorted(heads.items()))


def _over_slices(boot: Bootstrap, seen: list[_Seen], *, gated: bool) -> Scores:
    pairs = [(one.gated if gated else one.mask, one.drawn) for one in seen]
    owners = np.array([one.patient for one in seen], str)
    scores, positive = [one.scores for one in seen], [one.positive for one in seen]
    interval = boot.average_precision(owners, scores, positive)
    return _scores(boot, owners, pairs, _auprc(seen), interval)


def _over_patients(boot: Bootstrap, heads: dict[str, list[_Seen]]) -> Scores:
    sick = {name: head for name, head in heads.items() if any(one.drawn.any() for one in head)}
    pairs = [
        (np.stack([one.gated for one in head]), np.stack([one.drawn for one in head]))
        for head in sick.values()
    ]
    owners, own = np.array(list(sick), str), np.array([_auprc(head) for head in sick.values()])
    return _scores(boot, owners, pairs, _mean(own), boot.mean(owners, own))


def _scores(
    boot: Bootstrap,
    owners: NDArray[np.str_],
    pairs: Sequence[tuple[Mask, Mask]],
    auprc: float,
    auprc_interval: Interval,
) -> Scores:
    nothing = [(np.zeros_like(drawn), drawn) for _, drawn in pairs]
    overlaps = np.array([dice(*pair) for pair in pairs])
    return Scores(
        dice=_mean(overlaps),
        iou=_mean(iou(*pair) for pair in pairs),
        empty_dice=_mean(dice(*pair) for pair in nothing),
        empty_iou=_mean(iou(*pair) for pair in nothing),
        auprc=auprc,
        dice_interval=boot.mean(owners, overlaps),
        auprc_interval=auprc_interval,
    )


def _decision(
    boot: Bootstrap,
    rows: Sequence[SliceScores],
    margin: Callable[[SliceScores], float],
    in_use: bool,
) -> DecisionScores:
    """Of the decision that calls slices unhealthy whose ``margin`` is at least 0; where it is in
    use, but for those that leave as healthy."""
    margins = np.array([margin(row) for row in rows])
    unhealthy = np.array([row.unhealthy for row in rows])
    called = np.array([row.called_unhealthy for row in rows]) if in_use else margins >= 0
    right = called == unhealthy
    return DecisionScores(
        accuracy=float(right.mean()),
        accuracy_interval=boot.mean(np.array([row.patient for row in rows], str), right),
        sensitivity=_mean(called[unhealthy]),
        specificity=_mean(~called[~unhealthy]),
        auroc=area_under_roc(margins, unhealthy),
    )


def _auprc(seen: list[_Seen]) -> float:
    if not seen:
        return math.nan
    scores = np.concatenate([one.scores for one in seen])
    return average_precision(scores, np.concatenate([one.positive for one in seen]))


def _mean(values: Iterable[float]) -> float:
    known = [float(value) for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
