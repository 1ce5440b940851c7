"""The divergence M_t (eq. 12) of every slice over the timesteps, and where it peaks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..results import SliceResult
from .sheet import Sheet, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 3.5
_LEFT, _RIGHT, _TOP, _BOTTOM, _BETWEEN = 0.85, 0.25, 0.5, 0.55, 0.75
_LINE = 0.16  # inches of a line of the legend


def draw_curves(
    sheet: Sheet, top: float, slices: Sequence[SliceResult], modalities: Sequence[str] = ()
) -> None:
    """Draw one frame a scored modality, side by side, below ``top`` (inches).

    Parameters
    ----------
    modalities : the names of the scored modalities; without them, they are numbered if several
    """
    count = slices[0].M.shape[1]
    lines = {1: 1, 2: 2}.get(count, 4)
    above = _TOP + lines * _LINE
    width = (sheet.width - _LEFT - _RIGHT - (count - 1) * _BETWEEN) / count
    for c in range(count):
        axes = sheet.axes(
            _LEFT + c * (width + _BETWEEN), top + above, width, HEIGHT - above - _BOTTOM
        )
        theme = sheet.theme
        for unhealthy, name, color in (
            (False, "healthy", theme.healthy),
            (True, "unhealthy", theme.unhealthy),
        ):
            of = [result for result in slices if bool(result.unhealthy) == unhealthy]
            if not of:
                continue
            for result in of:
                axes.plot(result.timesteps, result.M[:, c], color=color, lw=0.7, alpha=0.3)
            t, mean = mean_curve(of, c)
            axes.plot(t, mean, color=color, lw=2.2, label=f"{name}: mean of {len(of)}")
            axes.plot(
                [result.t_e[c] for result in of],
                [result.M[:, c].max() for result in of],
                "o" if unhealthy else "s",
                color=color, ms=4.2, mec=theme.paper, mew=0.5, ls="none",
                label=f"their t_e, median {np.median([r.t_e[c] for r in of]):g}",
            )  # fmt: skip
        name = modalities[c] if c < len(modalities) else f"modality {c + 1}" if count > 1 else ""
        title = "Divergence M_t of healthy-guided and unguided prediction"
        if count > 1:
            title = f"M_t, {name}"
        axes.set_title(
            title,
            loc="left",
            color=theme.ink,
            fontsize=10,
            fontweight="bold",
            pad=8 + 72 * lines * _LINE,
        )
        axes.set_xlabel("timestep t", color=theme.faint, fontsize=8.5)
        axes.set_ylabel("M_t", color=theme.faint, fontsize=8.5, parse_math=False)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
        _quiet(axes, theme)
        axes.legend(
            fontsize=7.5, frameon=False, labelcolor=theme.ink, ncols=4 // lines, loc="lower left",
            bbox_to_anchor=(0, 1), borderaxespad=0.2, borderpad=0, labelspacing=0.2,
            handletextpad=0.5,
        )  # fmt: skip


def mean_curve(
    slices: Sequence[SliceResult], c: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Timesteps and the mean M_t there of the slices that took them, as far as half of them did.

    ``c``: of which modality.
    """
    longest = max((result.timesteps for result in slices), key=len)
    M = np.full((len(slices), len(longest)), np.nan)
    for row, result in zip(M, slices, strict=True):
        row[: len(result.M)] = result.M[:, c]
    reached = (~np.isnan(M)).sum(axis=0)
    kept = 2 * reached >= len(slices)
    return longest[kept], np.nanmean(M[:, kept], axis=0)


def curves(
    slices: Sequence[SliceResult], theme: Theme, modalities: Sequence[str] = (), width: float = 9.0
) -> bytes:
    """The curves alone, as PNG; within :func:`anofpdm.runtime.report.sheet.drawing`."""
    sheet = Sheet(width, HEIGHT, theme)
    draw_curves(sheet, 0, slices, modalities)
    return sheet.png()


def _quiet(axes: "Axes", theme: Theme) -> None:
    axes.tick_params(colors=theme.faint, labelsize=7.5, length=0)
    axes.grid(color=theme.line, lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.faint)
