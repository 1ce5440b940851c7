"""Draws the panels of :mod:`panels`: two figures of four, in colours that the colour-blind tell
apart (Okabe and Ito) and with markers that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from panels import Figures, Panel

from anofpdm.runtime.util.files import whole_file

HEALTHY, UNHEALTHY, DICE, AUPRC, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
_COLORS = {"healthy": HEALTHY, "unhealthy": UNHEALTHY}
_INCHES, _DPI = (10.7, 8.0), 150
STYLE = {
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8.5,
    "legend.framealpha": 0.8,
}


def draw(found: Figures, folder: Path) -> None:
    """Write ``figure2.png`` and ``figure5.png``."""
    with rc_context(STYLE):
        save(_figure2(found), folder / "figure2.png")
        save(_figure5(found), folder / "figure5.png")


def _figure2(found: Figures) -> Figure:
    figure, (a, b, c, d) = _four()
    _divergence(a, found)
    _errors(b, found.panels["2b"])
    _contrast(c, found.panels["2c"])
    panel = found.panels["2d"]
    a.set(title="a  divergence M_t (eq. 12)", xlabel="timestep t", ylabel="M_t")
    b.set(title="b  errors behind the cosine (eq. 18)", xlabel="timestep t", ylabel="MSE")
    c.set(title="c  S_t in the lesion over the rest", xlabel="t / t_e", ylabel="ratio")
    d.plot(panel.column("lesion_cm2"), panel.column("max_M"), "o", color=UNHEALTHY, ms=4, alpha=0.6)
    d.set(
        title=f"d  M at t_e and lesion area: r = {found.numbers['r']:.2f}",
        xlabel="drawn lesion, cm²",
        ylabel="max M_t",
    )
    return figure


def _divergence(axis: Axes, found: Figures) -> None:
    panel = found.panels["2a"]
    t = panel.column("t")
    for (name, color), dash in zip(_COLORS.items(), (":", "--"), strict=True):
        axis.fill_between(
            t,
            panel.column(f"{name}_q25"),
            panel.column(f"{name}_q75"),
            color=color,
            alpha=0.2,
            lw=0,
        )
        axis.plot(t, panel.column(f"{name}_mean"), "o-", ms=3, color=color, label=f"{name}, mean")
        t_e = found.numbers[f"{name}_t_e"]
        axis.axvline(t_e, color=color, ls=dash, lw=1.8, label=f"{name}, median t_e = {t_e:g}")
    axis.legend(title="band: middle half of the slices", title_fontsize=8.5)


def _errors(axis: Axes, panel: Panel) -> None:
    for name, color in _COLORS.items():
        for kind, line in (("MSE_h", "o-"), ("MSE_0", "s--")):
            values = panel.column(f"{name}_{kind}")
            axis.plot(panel.column("t"), values, line, ms=3, color=color, label=f"{name}, {kind}")
    axis.legend()


def _contrast(axis: Axes, panel: Panel) -> None:
    t = panel.column("t_over_t_e")
    axis.fill_between(
        t, panel.column("q25"), panel.column("q75"), color=UNHEALTHY, alpha=0.2, lw=0,
        label="middle half of the slices",
    )  # fmt: skip
    axis.plot(t, panel.column("mean"), "o-", ms=3, color=UNHEALTHY, label="mean")
    axis.plot(t, panel.column("median"), "s--", ms=3, color=GREY, label="median")
    axis.axvline(1, color=GREY, ls=":", lw=1.5, label="t_e")
    axis.set_xlim(0, float(t[np.isfinite(panel.column("mean"))].max()) + 0.1)
    axis.legend()


def _figure5(found: Figures) -> Figure:
    figure, (a, b, c, d) = _four()
    for axis, name, key, title, label in (
        (a, "5a", "w", "a  guidance strength w", "w"),
        (b, "5b", "t_e_ratio", "b  the map at a multiple of t_e", "multiple of t_e"),
        (c, "5c", "Q", "c  fixed thresholds", "threshold Q"),
    ):
        panel = found.panels[name]
        axis.plot(panel.column(key), panel.column("dice"), "o-", color=DICE, label="Dice")
        if "auprc" in panel.head:
            axis.plot(panel.column(key), panel.column("auprc"), "s-", color=AUPRC, label="AUPRC")
        axis.set(title=title, xlabel=label)
    b.set_xlabel(f"multiple of t_e (the process ends at t = {found.numbers['L']})")
    c.set_xscale("log")
    c.axvline(found.numbers["median_Q"], color=GREY, ls=":", label="median of Algorithm 1's Q")
    _bars(d, found.panels["5d"])
    for axis in (a, b, c, d):
        axis.axhline(
            found.numbers["dice"], color=DICE, ls="--", lw=1.2, label="dynamic selection, Dice"
        )
        if axis is not c:
            axis.axhline(
                found.numbers["auprc"], color=AUPRC, ls="-.", lw=1.2,
                label="dynamic selection, AUPRC",
            )  # fmt: skip
        axis.set(ylim=(0, 1), ylabel="unhealthy slices, each segmented")
        axis.legend(loc="upper right", ncols=2, fontsize=7.5)
    return figure


def _bars(axis: Axes, panel: Panel) -> None:
    place = np.arange(len(panel.rows))
    axis.bar(place - 0.2, panel.column("dice"), 0.38, color=DICE, label="Dice")
    axis.bar(place + 0.2, panel.column("auprc"), 0.38, color=AUPRC, hatch="//", label="AUPRC",
             edgecolor="white")  # fmt: skip
    names = [
        f"{sub},\n{kind}".replace("-", "-\n")
        for sub, kind in zip(panel.column("sub_map"), panel.column("anomaly_map"), strict=True)
    ]
    axis.set_xticks(place, names, fontsize=8)
    axis.set_title("d  what the map is made of")
    axis.grid(visible=False, axis="x")


def _four() -> tuple[Figure, Any]:
    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    return figure, figure.subplots(2, 2).flat


def save(figure: Figure, path: Path) -> None:
    with whole_file(path) as beside:
        figure.savefig(beside)
