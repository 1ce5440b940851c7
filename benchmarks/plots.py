"""Draws the panels of :mod:`panels`: two figures of four, in colours that the colour-blind tell
apart (Okabe and Ito) and with markers that differ."""

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
_STYLE = {
    "font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False,
    "axes.spines.right": False, "legend.fontsize": 8.5, "legend.framealpha": 0.8,
}  # fmt: skip


def draw(figures: Figures, folder: Path) -> None:
    """Write ``figure2.png`` and ``figure5.png``."""
    with rc_context(_STYLE):
        for name, figure in (("figure2", _figure2(figures)), ("figure5", _figure5(figures))):
            with whole_file(folder / f"{name}.png") as temporary:
                figure.savefig(temporary)


def _figure2(figures: Figures) -> Figure:
    figure, (a, b, c, d) = _four()
    _divergence(a, figures)
    _errors(b, figures.panels["2b"])
    _contrast(c, figures.panels["2c"])
    panel, r = figures.panels["2d"], figures.numbers["r"]
    d.plot(panel.column("lesion_cm2"), panel.column("max_M"), "o", color=UNHEALTHY, ms=4, alpha=0.6)
    a.set(title="a  divergence M_t (eq. 12)", xlabel="timestep t", ylabel="M_t")
    b.set(title="b  errors behind the cosine (eq. 18)", xlabel="timestep t", ylabel="MSE")
    c.set(title="c  S_t in the lesion over the rest", xlabel="t / t_e", ylabel="ratio")
    d.set(title=f"d  M at t_e and lesion area: r = {r:.2f}", xlabel="drawn lesion, cm²",
          ylabel="max M_t")  # fmt: skip
    return figure


def _divergence(axis: Axes, figures: Figures) -> None:
    panel = figures.panels["2a"]
    t = panel.column("t")
    for (name, color), dash in zip(_COLORS.items(), (":", "--"), strict=True):
        low, high = panel.column(f"{name}_q25"), panel.column(f"{name}_q75")
        axis.fill_between(t, low, high, color=color, alpha=0.2, lw=0)
        axis.plot(t, panel.column(f"{name}_mean"), "o-", ms=3, color=color, label=f"{name}, mean")
        t_e = figures.numbers[f"{name}_t_e"]
        axis.axvline(t_e, color=color, ls=dash, lw=1.8, label=f"{name}, median t_e = {t_e:g}")
    axis.legend(title="band: middle half of the slices", title_fontsize=8.5)


def _errors(axis: Axes, panel: Panel) -> None:
    for name, color in _COLORS.items():
        for kind, line in (("MSE_h", "o-"), ("MSE_0", "s--")):
            values = panel.column(f"{name}_{kind}")
            axis.plot(panel.column("t"), values, line, ms=3, color=color, label=f"{name}, {kind}")
    axis.legend()


def _contrast(axis: Axes, panel: Panel) -> None:
    t, mean = panel.column("t_over_t_e"), panel.column("mean")
    axis.fill_between(t, panel.column("q25"), panel.column("q75"), color=UNHEALTHY, alpha=0.2, lw=0,
                      label="middle half of the slices")  # fmt: skip
    axis.plot(t, mean, "o-", ms=3, color=UNHEALTHY, label="mean")
    axis.plot(t, panel.column("median"), "s--", ms=3, color=GREY, label="median")
    axis.axvline(1, color=GREY, ls=":", lw=1.5, label="t_e")
    axis.set_xlim(0, float(t[np.isfinite(mean)].max()) + 0.1)
    axis.legend()


def _figure5(figures: Figures) -> Figure:
    figure, (a, b, c, d) = _four()
    numbers = figures.numbers
    for axis, name in ((a, "5a"), (b, "5b"), (c, "5c")):
        panel = figures.panels[name]
        x = panel.column(panel.head[0])
        axis.plot(x, panel.column("dice"), "o-", color=DICE, label="Dice")
        if "auprc" in panel.head:
            axis.plot(x, panel.column("auprc"), "s-", color=AUPRC, label="AUPRC")
    a.set(title="a  guidance strength w", xlabel="w")
    end = f"multiple of t_e (the process ends at t = {numbers['L']})"
    b.set(title="b  the map at a multiple of t_e", xlabel=end)
    c.set(title="c  fixed thresholds", xlabel="threshold Q", xscale="log")
    c.axvline(numbers["median_Q"], color=GREY, ls=":", label="median of Algorithm 1's Q")
    _bars(d, figures.panels["5d"])
    for axis in (a, b, c, d):
        axis.axhline(numbers["dice"], color=DICE, ls="--", lw=1.2, label="dynamic selection, Dice")
        if axis is not c:
            axis.axhline(numbers["auprc"], color=AUPRC, ls="-.", lw=1.2,
                         label="dynamic selection, AUPRC")  # fmt: skip
        axis.set(ylim=(0, 1), ylabel="unhealthy slices, each segmented")
        axis.legend(loc="upper right", ncols=2, fontsize=7.5)
    return figure


def _bars(axis: Axes, panel: Panel) -> None:
    place = np.arange(len(panel.rows))
    axis.bar(place - 0.2, panel.column("dice"), 0.38, color=DICE, label="Dice")
    axis.bar(place + 0.2, panel.column("auprc"), 0.38, color=AUPRC, hatch="//", label="AUPRC",
             edgecolor="white")  # fmt: skip
    names = [f"{row[0]},\n{row[1]}".replace("-", "-\n") for row in panel.rows]
    axis.set_xticks(place, names, fontsize=8)
    axis.set_title("d  what the map is made of")
    axis.grid(visible=False, axis="x")


def _four() -> tuple[Figure, Any]:
    figure = Figure(figsize=(10.7, 8.0), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    return figure, figure.subplots(2, 2).flat
