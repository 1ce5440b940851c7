"""Draws what :mod:`scaling` found: a panel a curve, with what perfect scaling would be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from plots import AUPRC, DICE, GREY, HEALTHY, STYLE, UNHEALTHY

_COLORS = {"slices": HEALTHY, "L": UNHEALTHY, "pixels": DICE, "threads": AUPRC, "volumes": HEALTHY}
_MARKERS = {"slices": "o", "L": "s", "pixels": "^", "threads": "D", "volumes": "o"}
_PERFECT = {1: "in proportion", -1: "in inverse proportion", 0: "the same"}
_INCHES, _DPI, _COLUMNS = (12.0, 7.6), 150, 3


def draw(curves: Sequence[Mapping[str, Any]]) -> Figure:
    """Median and quartiles of every curve; seconds on two logarithmic axes, where a power law is a
    straight line, and memory from 0 on."""
    with rc_context(STYLE):
        figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
        rows = math.ceil(len(curves) / _COLUMNS)
        for i, curve in enumerate(curves):
            _panel(figure.add_subplot(rows, _COLUMNS, i + 1), chr(ord("a") + i), curve)
    return figure


def _panel(axis: Axes, letter: str, curve: Mapping[str, Any]) -> None:
    what, timed = curve["what"], curve["unit"] == "s"
    sizes = np.array([point["size"] for point in curve["points"]], float)
    low, middle, high = np.array([point["cost"] for point in curve["points"]]).T
    perfect = middle[0] * (sizes / sizes[0]) ** curve["expected"]
    fitted = "" if curve["exponent"] is None else f", exponent {curve['exponent']:.2f}"
    axis.plot(sizes, perfect, "--", color=GREY, lw=1.3, label=_PERFECT[curve["expected"]])
    axis.errorbar(
        sizes, middle, (middle - low, high - middle), color=_COLORS[what], marker=_MARKERS[what],
        ms=5, lw=1.5, capsize=3, label="median, quartiles" if timed else "measured once",
    )  # fmt: skip
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(sizes, [_tick(what, size) for size in sizes])
    if timed:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_ylim(0, 1.4 * high.max())
    axis.set_title(f"{letter}  {what}{fitted}")
    axis.set(xlabel=f"{what}\n({curve['label']})", ylabel="seconds" if timed else "peak MiB")
    axis.legend()


def _tick(what: str, size: float) -> str:
    return f"{math.isqrt(int(size))}²" if what == "pixels" else f"{size:g}"
