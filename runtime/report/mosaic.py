"""Slices side by side: the image with the mask's outline, and beside it the anomaly map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .sheet import DARK, Sheet
from .tiles import Tile

WIDTH = 12.0
RED = "#ff2d2d"
_OUTLINE_ON_MAP = "#ffffff"
_EDGE, _GAP, _CAPTION, _HEADER, _FOOTER = 0.25, 0.2, 0.27, 0.62, 0.3
_PAIRS = 4  # a row
_LONGEST = 70  # letters of a title


def mosaic_height(shown: Sequence[Tile]) -> float:
    """Inches that :func:`draw_mosaic` takes."""
    rows = -(-len(shown) // _PAIRS)
    return _HEADER + rows * (_CAPTION + _tile_size(shown)[1] + _GAP / 2) + _FOOTER


def draw_mosaic(sheet: Sheet, shown: Sequence[Tile], title: str, subtitle: str) -> None:
    """Draw slices into the top of a dark sheet of the mosaic's width."""
    theme = sheet.theme
    width, height = _tile_size(shown)
    shortened = title if len(title) <= _LONGEST else f"{title[: _LONGEST - 1]}…"
    sheet.text(_EDGE, 0.31, shortened, fontsize=13, fontweight="bold")
    sheet.text(_EDGE, 0.5, subtitle, color=theme.faint, fontsize=8.5)
    window = _window(shown)
    high = float(np.quantile(np.stack([tile.H for tile in shown]), 0.999))
    brightest = max(high, float(np.finfo(np.float32).tiny))
    for n, tile in enumerate(shown):
        row, column = divmod(n, _PAIRS)
        left = _EDGE + column * (2 * width + _GAP)
        top = _HEADER + row * (_CAPTION + height + _GAP / 2) + _CAPTION
        color = theme.unhealthy if tile.unhealthy else theme.healthy
        verdict = f"{'unhealthy' if tile.unhealthy else 'healthy'}  p = {tile.probability:.2f}"
        sheet.text(left, top - 0.06, f"slice {tile.level}", fontweight="bold")
        sheet.text(left + 2 * width, top - 0.06, verdict, color=color, ha="right")
        image = sheet.axes(left, top, width, height)
        image.imshow(
            tile.image, cmap="gray", vmin=window[0], vmax=window[1], interpolation="bilinear"
        )
        beside = sheet.axes(left + width, top, width, height)
        drawn = beside.imshow(
            tile.H, cmap="inferno", vmin=0, vmax=brightest, interpolation="bilinear"
        )
        for axes, line in ((image, RED), (beside, _OUTLINE_ON_MAP)):
            if tile.mask.any():
                thick = 1.3 if axes is image else 0.6
                axes.contour(tile.mask.astype(float), [0.5], colors=line, linewidths=thick)
            axes.set_axis_off()
            axes.set_aspect("auto")
        for x, side, letter in ((0.03, "left", "R"), (0.97, "right", "L")):
            image.text(
                x, 0.97, letter, color=theme.faint, fontsize=8, ha=side, va="top",
                transform=image.transAxes,
            )  # fmt: skip
    scale = sheet.axes(WIDTH - _EDGE - 2.2, 0.2, 2.2, 0.1)
    bar = sheet.figure.colorbar(drawn, cax=scale, orientation="horizontal", extend="max")
    bar.outline.set_visible(False)
    scale.tick_params(colors=theme.faint, labelsize=7, length=2, pad=1.5)
    scale.locator_params(nbins=4)
    sheet.text(WIDTH - _EDGE - 2.3, 0.3, "anomaly map H", color=theme.faint, fontsize=8, ha="right")
    sheet.text(
        _EDGE,
        mosaic_height(shown) - 0.12,
        "For research, not for diagnosis.  Red: the mask.  Radiological convention: the patient's "
        "right (R) is on the left.  p: probability of being unhealthy by the calibrated decision.",
        color=theme.faint,
        fontsize=7.5,
    )


def mosaic(shown: Sequence[Tile], title: str, subtitle: str) -> bytes:
    """The slices alone, as PNG; within :func:`anofpdm.runtime.report.sheet.drawing`."""
    sheet = Sheet(WIDTH, mosaic_height(shown), DARK)
    draw_mosaic(sheet, shown, title, subtitle)
    return sheet.png()


def _tile_size(shown: Sequence[Tile]) -> tuple[float, float]:
    """Width and height in inches of one of the two pictures of a slice."""
    width = (WIDTH - 2 * _EDGE - (_PAIRS - 1) * _GAP) / (2 * _PAIRS)
    rows, columns = shown[0].image.shape
    return width, width * rows / columns


def _window(shown: Sequence[Tile]) -> tuple[float, float]:
    """The intensities that become black and white: the same on all slices."""
    values = np.concatenate([tile.image.ravel() for tile in shown])
    inside = values[values > -0.9]
    white = float(np.quantile(inside, 0.995)) if len(inside) else 1.0
    return -1.0, max(white, -0.9)
