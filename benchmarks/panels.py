"""The data of the paper's figures 2 and 5, for a bundle on slices whose lesions were drawn.

One pass of the network serves all set-ups; its predictions (128 KB a slice, timestep and modality
at 128 x 128 pixels) are kept. Each slice goes to L, alone, and is cut by Algorithm 1. Curves and
maps are means over the scored modalities.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import with_paper_rules
from numpy.typing import NDArray

from anofpdm.calibrate.metrics import average_precision, dice
from anofpdm.runtime.backends.base import Denoiser
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend, NumpySlots
from anofpdm.runtime.backends.scheduler import run
from anofpdm.runtime.bundle.bundle import Bundle
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.method.anomaly_map import ANOMALY_MAPS, SUB_MAPS, MapRule
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.method.step import Step
from anofpdm.runtime.refine.masks import cut
from anofpdm.runtime.results import SliceResult
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.train.dataset import SliceSet

Float32, Float64 = NDArray[np.float32], NDArray[np.float64]
Mask = NDArray[np.bool_]
_FOREGROUND = -0.95
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
        return np.array([row[self.head.index(name)] for row in self.rows])

    def csv(self) -> str:
        """Six digits; empty where there is no value."""
        lines = [self.head, *([_plain(value) for value in row] for row in self.rows)]
        return "".join(",".join(line) + "\n" for line in lines)


@dataclass(frozen=True)
class Figures:
    """``panels``: by name, ``2a`` to ``5d``; ``numbers``: the figures quoted from them."""

    panels: dict[str, Panel]
    numbers: dict[str, float]


class CachedDenoiser:
    """Calls the network once for each noisy slice: its predictions depend neither on guidance nor
    on maps or thresholds. ``evaluations``: noisy slices that the network has seen."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser, self.evaluations = denoiser, 0
        self._cache: dict[tuple[int, int], tuple[Float32, Float32]] = {}

    def __call__(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        """Both predictions, each computed once."""
        keys = [(int(step), hash(sample.tobytes())) for step, sample in zip(t, x_t, strict=True)]
        new = {key: i for i, key in enumerate(keys) if key not in self._cache}
        if new:
            rows = list(new.values())
            predicted = zip(*self._denoiser(x_t[rows], t[rows]), strict=True)
            self._cache |= dict(zip(new, predicted, strict=True))
            self.evaluations += len(rows)
        eps_healthy, eps_null = zip(*(self._cache[key] for key in keys), strict=True)
        return np.stack(eps_healthy), np.stack(eps_null)


class _SubMaps:
    """Records the sub-anomaly maps S_t (eq. 19) of a slice."""

    def __init__(self, w: float, scored: tuple[int, ...]) -> None:
        self._w, self._scored = w, list(scored)
        self.S: list[Float32] = []

    def add(self, step: Step, UGP: Float32) -> bool:
        """Keep the map of a step; the slice goes on to L."""
        x0, HGP = step.x0[self._scored], step.HGP(self._w)[self._scored]
        S = MapRule().sub_anomaly(step, HGP, UGP[self._scored], x0, self._w)
        self.S.append(S.mean(axis=0))
        return False


def figures(
    bundle: Bundle,
    denoiser: Denoiser,
    slices: SliceSet,
    preset: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Figures:
    """Segment the slices in every set-up that the figures compare. CohortError if slices with and
    without drawn lesions are not both there."""
    slices = slices.take([i for i, record in enumerate(slices.records) if record.drawn])
    sick = slices.unhealthy
    if sick.all() or not sick.any():
        raise CohortError("there must be healthy and unhealthy slices, with drawn lesions")
    bundle, backend = with_paper_rules(bundle), NumpyBackend(CachedDenoiser(denoiser))

    def segmenter(**changes: Any) -> Segmenter:
        options = Options(preset=preset, early_stop=False, **changes)
        return Segmenter(bundle, backend, options=options)

    def scores(**changes: Any) -> tuple[float, float]:
        """Mean Dice, and AUPRC over the foreground's pixels, of unhealthy slices."""
        results = sorted(segmenter(**changes).segment_slices(items), key=lambda result: result.key)
        maps = [result.smoothed[head] for result, head in zip(results, heads, strict=True)]
        drawn = [lesion[head] for lesion, head in zip(lesions, heads, strict=True)]
        overlaps = [dice(r.mask, lesion) for r, lesion in zip(results, lesions, strict=True)]
        auprc = average_precision(np.concatenate(maps), np.concatenate(drawn))
        return float(np.mean(overlaps)), auprc

    def ablation(name: str, values: Sequence[float]) -> Panel:
        return Panel((name, "dice", "auprc"), [(v, *scores(**{name: v})) for v in values])

    dynamic, results = segmenter(), {}
    for result in dynamic.segment_slices(slices.slices()):
        results[result.key] = result
        progress(len(results), len(slices))
    ordered = [results[i] for i in range(len(slices))]
    unhealthy = [results[i] for i in np.flatnonzero(sick).tolist()]
    items = [Slice(result.key, slices.x0(result.key)) for result in unhealthy]
    heads = [item.x0.mean(axis=0) > _FOREGROUND for item in items]
    lesions = [slices.mask(item.key) for item in items]
    ratios = _ratios(dynamic, items, heads, lesions)
    area_cm2 = [float(lesion.sum()) * slices.grid.pixel_mm**2 / 100 for lesion in lesions]
    largest_M = [float(result.M.max(axis=0).mean()) for result in unhealthy]
    c = dynamic.plan.calibration
    at_L = [o.w for o in c.candidates if o.L == c.conditions.L and min(o.M_max) > 0]
    maps = [(sub_map, kind) for sub_map in SUB_MAPS for kind in ANOMALY_MAPS]
    panels = {
        "2a": _divergence(ordered, sick),
        "2b": _errors(ordered, sick),
        "2c": _contrasts(unhealthy, ratios),
        "2d": Panel(("lesion_cm2", "max_M"), list(zip(area_cm2, largest_M, strict=True))),
        "5a": ablation("w", sorted({c.w, *at_L})),  # calibrated for this L
        "5b": ablation("t_e_ratio", T_E_RATIOS),
        "5c": _thresholds(unhealthy, lesions),
        "5d": Panel(
            ("sub_map", "anomaly_map", "dice", "auprc"),
            [(sub, kind, *scores(sub_map=sub, anomaly_map=kind)) for sub, kind in maps],
        ),
    }
    numbers = _numbers(panels, ordered, sick, ratios)
    numbers["dice"], numbers["auprc"] = scores()
    return Figures(panels, numbers)


def contrast(S: Float32, lesion: Mask, head: Mask) -> Float64:
    """Mean of each map (n, H, W) in the lesion (H, W) over its mean in the rest of the foreground:
    (n,), NaN where one of the two is empty."""
    rest = head & ~lesion
    if not lesion.any() or not rest.any():
        return np.full(len(S), np.nan)
    inside = S[:, lesion].mean(axis=1, dtype=np.float64)
    outside = S[:, rest].mean(axis=1, dtype=np.float64)
    return inside / np.where(outside > 0, outside, np.nan)


def _ratios(
    segmenter: Segmenter, items: list[Slice], heads: list[Mask], lesions: list[Mask]
) -> list[Float64]:
    """The contrast of each slice at every visited timestep."""
    w, scored = segmenter.plan.calibration.w, segmenter.bundle.manifest.scored_channels
    process, backend = segmenter.plan.process, segmenter.backend
    row = NumpySlots(process, backend.denoiser, lambda: _SubMaps(w, scored), slots=backend.slots)
    S = {item.key: np.array(maps.S) for item, maps in run(row, items)}
    ordered = zip(items, lesions, heads, strict=True)
    return [contrast(S[item.key], lesion, head) for item, lesion, head in ordered]


def _divergence(results: Sequence[SliceResult], sick: Mask) -> Panel:
    """Figure 2a: M_t, and the share of the slices whose t_e falls on t."""
    columns, M = {"t": results[0].timesteps}, np.array([r.M.mean(axis=1) for r in results])
    t_e = np.array([result.t_e for result in results])
    for name, which in (("healthy", ~sick), ("unhealthy", sick)):
        low, high = np.quantile(M[which], [0.25, 0.75], axis=0)
        shares = [float((t_e[which] == t).mean()) for t in columns["t"]]
        columns |= {f"{name}_mean": M[which].mean(axis=0), f"{name}_q25": low,
                    f"{name}_q75": high, f"{name}_t_e_share": shares}  # fmt: skip
    return Panel(tuple(columns), list(zip(*columns.values(), strict=True)))


def _errors(results: Sequence[SliceResult], sick: Mask) -> Panel:
    """Figure 2b: the sequences behind the cosine (eq. 18)."""
    columns: dict[str, Any] = {"t": results[0].timesteps}
    for name, which in (("healthy", ~sick), ("unhealthy", sick)):
        for kind in ("MSE_h", "MSE_0"):
            values = np.array([getattr(result, kind).mean(axis=1) for result in results])
            columns[f"{name}_{kind}"] = values[which].mean(axis=0)
    return Panel(tuple(columns), list(zip(*columns.values(), strict=True)))


def _contrasts(unhealthy: Sequence[SliceResult], ratios: Sequence[Float64]) -> Panel:
    """Figure 2c: each slice's ratios, read off at multiples of its t_e."""
    curves = []
    for result, ratio in zip(unhealthy, ratios, strict=True):
        relative = result.timesteps / result.t_e.mean()
        curves.append(np.interp(RELATIVE_T, relative, ratio, left=np.nan, right=np.nan))
    rows = []
    for relative_t, values in zip(RELATIVE_T, np.array(curves).T, strict=True):
        finite = values[np.isfinite(values)]
        quartiles = np.quantile(finite, [0.5, 0.25, 0.75]) if len(finite) else [math.nan] * 3
        mean = float(finite.mean()) if len(finite) else math.nan
        rows.append((float(relative_t), mean, *quartiles, len(finite)))
    return Panel(("t_over_t_e", "mean", "median", "q25", "q75", "slices"), rows)


def _thresholds(unhealthy: Sequence[SliceResult], lesions: Sequence[Mask]) -> Panel:
    """Figure 5c: fixed thresholds on the very maps that Algorithm 1 cuts."""
    median = float(np.median([result.Q for result in unhealthy]))
    rows = []
    for multiple in THRESHOLDS:
        masks = [cut(result.smoothed, multiple * median) for result in unhealthy]
        scores = [dice(mask, lesion) for mask, lesion in zip(masks, lesions, strict=True)]
        rows.append((multiple * median, float(multiple), float(np.mean(scores))))
    return Panel(("Q", "of_median_Q", "dice"), rows)


def _numbers(
    panels: dict[str, Panel], results: Sequence[SliceResult], sick: Mask, ratios: list[Float64]
) -> dict[str, float]:
    L = int(results[0].timesteps[-1])
    numbers: dict[str, float] = {"slices": len(sick), "unhealthy": int(sick.sum()), "L": L}
    for name, which in (("healthy", ~sick), ("unhealthy", sick)):
        t_e = np.array([results[i].t_e for i in np.flatnonzero(which).tolist()])
        mean = panels["2a"].column(f"{name}_mean")
        numbers[f"{name}_peak_t"] = int(panels["2a"].column("t")[mean.argmax()])
        numbers[f"{name}_t_e"] = float(np.median(t_e))
        numbers[f"{name}_t_e_last"] = float((t_e == L).mean())
    unhealthy = [results[i] for i in np.flatnonzero(sick).tolist()]
    pairs = zip(unhealthy, ratios, strict=True)
    at_t_e = [np.interp(result.t_e.mean(), result.timesteps, ratio) for result, ratio in pairs]
    numbers["ratio_at_t_e"] = float(np.nanmean(at_t_e))
    mean = panels["2c"].column("mean")
    numbers["ratio_peak"] = float(np.nanmax(mean))
    numbers["ratio_peak_t_over_t_e"] = float(RELATIVE_T[np.nanargmax(mean)])
    area, M = panels["2d"].column("lesion_cm2"), panels["2d"].column("max_M")
    numbers["r"] = float(np.corrcoef(area, M)[0, 1]) if area.std() * M.std() > 0 else math.nan
    numbers["median_Q"] = float(np.median([result.Q for result in unhealthy]))
    return numbers


def _plain(value: Any) -> str:
    if isinstance(value, str | int | np.integer):
        return str(value)
    return f"{value:.6g}" if math.isfinite(value) else ""
