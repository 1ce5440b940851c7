"""What the paper's figures 2 and 5 show, for a bundle on slices whose lesions were drawn.

Everything comes from one pass of the network over the slices (:mod:`remembered`), without early
stop, by the paper's rules: each slice alone, cut by Algorithm 1. Where there are several scored
modalities, curves and maps are their means.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from paper import as_in_the_paper
from remembered import Remembered

from anofpdm.calibrate.metrics import average_precision, dice
from anofpdm.runtime.backends.base import Denoiser
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend, NumpySlots
from anofpdm.runtime.backends.scheduler import run
from anofpdm.runtime.bundle.bundle import Bundle
from anofpdm.runtime.bundle.options import Plan, Options, resolve
from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.method.anomaly_map import ANOMALY_MAPS, SUB_MAPS, MapRule
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.method.step import Step
from anofpdm.runtime.refine.masks import cut
from anofpdm.runtime.results import SliceResult
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.train.dataset import SliceSet

Float64 = NDArray[np.float64]
_FOREGROUND = -0.95
_PAPER = MapRule()
T_E_RATIOS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
THRESHOLDS = np.geomspace(1 / 8, 8, 13)  # multiples of the median of Algorithm 1's
RELATIVE_T = np.round(np.arange(0.1, 2.01, 0.1), 1)


@dataclass(frozen=True)
class Panel:
    """The data of one panel: a row of values for each row of the CSV file."""

    head: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def column(self, name: str) -> NDArray[Any]:
        """(n,) the values under a heading."""
        return np.array([row[self.geometry.index(name)] for row in self.rows])

    def csv(self) -> str:
        """Six digits; empty where there is no value."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.geometry)
        writer.writerows([_plain(value) for value in row] for row in self.rows)
        return text.getvalue()


@dataclass(frozen=True)
class Figures:
    """``panels``: by name, ``2a`` to ``5d``; ``numbers``: what one quotes."""

    panels: dict[str, Panel]
    numbers: dict[str, float]


@dataclass
class _Scores:
    """Of one set-up, an entry for each unhealthy slice."""

    dice: list[float] = field(default_factory=list)
    maps: list[NDArray[np.float32]] = field(default_factory=list)
    lesions: list[NDArray[np.bool_]] = field(default_factory=list)

    def add(self, result: SliceResult, lesion: NDArray[np.bool_], head: NDArray[np.bool_]) -> None:
        self.dice.append(dice(result.mask, lesion))
        self.maps.append(result.smoothed[head])
        self.lesions.append(lesion[head])

    def means(self) -> tuple[float, float]:
        """Mean Dice, and AUPRC over the foreground's pixels of all slices."""
        auprc = average_precision(np.concatenate(self.maps), np.concatenate(self.lesions))
        return float(np.mean(self.dice)), auprc


class _SubMaps:
    """Records the sub-anomaly maps S_t (eq. 19) of a slice."""

    def __init__(self, w: float, scored: tuple[int, ...]) -> None:
        self._w, self._scored = w, list(scored)
        self.S: list[NDArray[np.float32]] = []

    def add(self, step: Step, UGP: NDArray[np.float32]) -> bool:
        """See :class:`anofpdm.runtime.backends.cpu.numpy_loop.Accumulator`."""
        x0, HGP = step.x0[self._scored], step.HGP(self._w)[self._scored]
        S = _PAPER.sub_anomaly(step, HGP, UGP[self._scored], x0, self._w)
        self.S.append(S.mean(axis=0))
        return False


def figures(
    bundle: Bundle,
    denoiser: Denoiser,
    slices: SliceSet,
    preset: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    slots: int = 4,
) -> Figures:
    """Segment the slices in every set-up that the figures compare.

    Raises
    ------
    CohortError
        If slices with and without lesions, drawn ones, are not both there.
    """
    slices = slices.take([i for i, record in enumerate(slices.records) if record.drawn])
    sick = slices.unhealthy
    if sick.all() or not sick.any():
        raise CohortError(
            "the figures need healthy and unhealthy slices whose lesions were drawn: name another "
            "--split, or a smaller --every"
        )
    bundle = as_in_the_paper(bundle)
    usual = Options(preset=preset, early_stop=False)
    resolved = resolve(bundle, usual)
    setups = _ablations(usual, resolved)
    remembered = Remembered(denoiser)
    segmenters = {
        name: Segmenter(bundle, NumpyBackend(remembered, slots), options=options)
        for name, setup in setups.items()
    }
    dynamic = Segmenter(bundle, NumpyBackend(remembered, slots), setup=usual)
    results: dict[int, SliceResult] = {}
    ratios: dict[int, Float64] = {}
    usual_scores = _Scores()
    same = {name for name, segmenter in segmenters.items() if segmenter.plan == dynamic.plan}
    scores = {name: usual_scores if name in same else _Scores() for name in setups}
    for first in range(0, len(slices), slots):
        items = [Slice(i, slices.x0(i)) for i in range(first, min(first + slots, len(slices)))]
        results |= {result.key: result for result in dynamic.segment_slices(items)}
        shown = [item for item in items if sick[item.key]]
        lesions = {item.key: slices.mask(item.key) for item in shown}
        heads = {item.key: item.x0.mean(axis=0) > _FOREGROUND for item in shown}
        for item in shown:
            usual_scores.add(results[item.key], lesions[item.key], heads[item.key])
        for name in segmenters.keys() - same:
            for result in segmenters[name].segment_slices(shown):
                scores[name].add(result, lesions[result.key], heads[result.key])
        for key, S in _sub_maps(resolved, bundle, remembered, shown, slots):
            ratios[key] = contrast(S, lesions[key], heads[key])
        remembered.forget()
        progress(len(results), len(slices))
    found = [results[i] for i in range(len(slices))]
    ill = [results[int(i)] for i in np.flatnonzero(sick)]
    drawn = [slices.mask(result.key) for result in ill]
    panels = {
        "2a": _divergence(found, sick),
        "2b": _errors(found, sick),
        "2c": _contrasts(ill, [ratios[result.key] for result in ill]),
        "2d": Panel(
            ("lesion_cm2", "max_M"),
            [
                (float(mask.sum()) * slices.grid.pixel_mm**2 / 100, _highest(result))
                for mask, result in zip(drawn, ill, strict=True)
            ],
        ),
        "5c": _thresholds(ill, drawn),
        **_compared(scores),
    }
    return Figures(panels, _numbers(panels, found, sick, ratios, usual_scores))


def contrast(S: NDArray[np.float32], lesion: NDArray[np.bool_], head: NDArray[np.bool_]) -> Float64:
    """Mean of each map in the lesion over its mean in the rest of the foreground.

    Parameters
    ----------
    S : (n, H, W); lesion, head : (H, W)

    Returns
    -------
    (n,), NaN where one of the two is empty
    """
    rest = head & ~lesion
    if not lesion.any() or not rest.any():
        return np.full(len(S), np.nan)
    inside = S[:, lesion].mean(axis=1, dtype=np.float64)
    outside = S[:, rest].mean(axis=1, dtype=np.float64)
    return inside / np.where(outside > 0, outside, np.nan)


def _ablations(usual: Options, resolved: Plan) -> dict[tuple[Any, ...], Options]:
    """By panel and what differs: every set-up but the usual one that takes a run of its own."""
    wishes: dict[str, Any] = {"preset": resolved.preset, "early_stop": usual.early_stop}
    c = resolved.calibration
    tried = {c.w} | {
        one.w for one in c.candidates if one.L == c.conditions.L and min(one.M_max) > 0
    }
    setups: dict[tuple[Any, ...], Options] = {}
    for w in sorted(tried):
        setups["5a", w] = Options(w=w, **wishes)
    for ratio in T_E_RATIOS:
        setups["5b", ratio] = Options(t_e_ratio=ratio, **wishes)
    for sub_map in SUB_MAPS:
        for kind in ANOMALY_MAPS:
            setups["5d", sub_map, kind] = Options(sub_map=sub_map, anomaly_map=kind, **wishes)
    return setups


def _sub_maps(
    resolved: Plan, bundle: Bundle, denoiser: Denoiser, items: list[Slice], slots: int
) -> list[tuple[int, NDArray[np.float32]]]:
    w, scored = resolved.calibration.w, bundle.manifest.scored_channels
    row = NumpySlots(resolved.process, denoiser, lambda: _SubMaps(w, scored), slots=slots)
    return [(item.key, np.array(accumulator.S)) for item, accumulator in run(row, items)]


def _divergence(found: Sequence[SliceResult], sick: NDArray[np.bool_]) -> Panel:
    """Figure 2a: M_t, and the share of the slices whose t_e falls on t."""
    columns: dict[str, Any] = {"t": found[0].timesteps}
    M = np.array([result.M.mean(axis=1) for result in found])
    t_e = np.array([result.t_e for result in found])
    for name, which in _classes(sick):
        low, high = np.quantile(M[which], [0.25, 0.75], axis=0)
        shares = [float((t_e[which] == t).mean()) for t in columns["t"]]
        values = (M[which].mean(axis=0), low, high, shares)
        for kind, value in zip(("mean", "q25", "q75", "t_e_share"), values, strict=True):
            columns[f"{name}_{kind}"] = value
    return _panel(columns)


def _errors(found: Sequence[SliceResult], sick: NDArray[np.bool_]) -> Panel:
    """Figure 2b: the sequences behind the cosine (eq. 18)."""
    columns: dict[str, Any] = {"t": found[0].timesteps}
    for name, which in _classes(sick):
        for kind in ("MSE_h", "MSE_0"):
            values = np.array([getattr(result, kind).mean(axis=1) for result in found])
            columns[f"{name}_{kind}"] = values[which].mean(axis=0)
    return _panel(columns)


def _contrasts(ill: Sequence[SliceResult], ratios: Sequence[Float64]) -> Panel:
    """Figure 2c: each slice's ratios, read off at multiples of its t_e."""
    curves = []
    for result, ratio in zip(ill, ratios, strict=True):
        relative = result.timesteps / result.t_e.mean()
        curves.append(np.interp(RELATIVE_T, relative, ratio, left=np.nan, right=np.nan))
    rows = []
    for relative_t, values in zip(RELATIVE_T, np.array(curves).T, strict=True):
        known = values[np.isfinite(values)]
        low, median, high = np.quantile(known, [0.25, 0.5, 0.75]) if len(known) else [math.nan] * 3
        mean = float(known.mean()) if len(known) else math.nan
        rows.append((float(relative_t), mean, median, low, high, len(known)))
    return Panel(("t_over_t_e", "mean", "median", "q25", "q75", "slices"), rows)


def _thresholds(ill: Sequence[SliceResult], drawn: Sequence[NDArray[np.bool_]]) -> Panel:
    """Figure 5c: fixed thresholds on the very maps that Algorithm 1 cuts."""
    middle = float(np.median([result.Q for result in ill]))
    rows = []
    for multiple in THRESHOLDS:
        Q = multiple * middle
        scores = [dice(cut(one.smoothed, Q), mask) for one, mask in zip(ill, drawn, strict=True)]
        rows.append((Q, float(multiple), float(np.mean(scores))))
    return Panel(("Q", "of_median_Q", "dice"), rows)


def _compared(scores: dict[tuple[Any, ...], _Scores]) -> dict[str, Panel]:
    heads = {
        "5a": ("w", "dice", "auprc"),
        "5b": ("t_e_ratio", "dice", "auprc"),
        "5d": ("sub_map", "anomaly_map", "dice", "auprc"),
    }
    return {
        panel: Panel(
            head,
            [(*name[1:], *one.means()) for name, one in scores.items() if name[:1] == (panel,)],
        )
        for panel, head in heads.items()
    }


def _numbers(
    panels: dict[str, Panel],
    found: Sequence[SliceResult],
    sick: NDArray[np.bool_],
    ratios: dict[int, Float64],
    dynamic: _Scores,
) -> dict[str, float]:
    numbers: dict[str, float] = {"slices": len(sick), "unhealthy": int(sick.sum())}
    numbers["L"] = int(found[0].timesteps[-1])
    for name, which in _classes(sick):
        t_e = np.array([found[int(i)].t_e for i in np.flatnonzero(which)])
        mean = panels["2a"].column(f"{name}_mean")
        numbers[f"{name}_peak_t"] = int(panels["2a"].column("t")[mean.argmax()])
        numbers[f"{name}_t_e"] = float(np.median(t_e))
        numbers[f"{name}_t_e_last"] = float((t_e == numbers["L"]).mean())
    at_t_e = [
        np.interp(found[i].t_e.mean(), found[i].timesteps, ratio) for i, ratio in ratios.items()
    ]
    numbers["ratio_at_t_e"] = float(np.nanmean(at_t_e))
    mean = panels["2c"].column("mean")
    numbers["ratio_peak"] = float(np.nanmax(mean))
    numbers["ratio_peak_t_over_t_e"] = float(RELATIVE_T[np.nanargmax(mean)])
    area, M = panels["2d"].column("lesion_cm2"), panels["2d"].column("max_M")
    numbers["r"] = float(np.corrcoef(area, M)[0, 1]) if area.std() * M.std() > 0 else math.nan
    numbers["dice"], numbers["auprc"] = dynamic.means()
    numbers["median_Q"] = float(np.median([found[int(i)].Q for i in np.flatnonzero(sick)]))
    return numbers


def _classes(sick: NDArray[np.bool_]) -> tuple[tuple[str, NDArray[np.bool_]], ...]:
    return ("healthy", ~sick), ("unhealthy", sick)


def _highest(result: SliceResult) -> float:
    return float(result.M.max(axis=0).mean())


def _panel(columns: dict[str, Any]) -> Panel:
    return Panel(tuple(columns), list(zip(*columns.values(), strict=True)))


def _plain(value: Any) -> str:
    if isinstance(value, str | int | np.integer):
        return str(value)
    return f"{value:.6g}" if math.isfinite(value) else ""
