"""Slices side by side: the image with the mask's outline, and beside it the anomaly map."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .sheet import DARK, Sheet
from .tiles import AIR, Tile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

WIDTH = 12.0
RED = "#ff2d2d"
_FOOT = (
    "For research, not for diagnosis.  Red: the mask.  Radiological convention: the patient's "
    "right (R) is on the left.  p: probability of being unhealthy by the calibrated decision."
)
_EDGE, _GAP, _CAPTION, _HEADER, _FOOTER = 0.25, 0.2, 0.27, 0.62, 0.3
_PAIRS = 4  # a row
_LONGEST = 70  # letters of a title


def mosaic_height(tiles: Sequence[Tile]) -> float:
    """Inches that :func:`draw_mosaic` takes."""
    rows = -(-len(tiles) // _PAIRS)
    return _HEADER + rows * (_CAPTION + _tile_size(tiles)[1] + _GAP / 2) + _FOOTER


def draw_mosaic(sheet: Sheet, tiles: Sequence[Tile], title: str, subtitle: str) -> None:
    """Draw slices into the top of a dark sheet of the mosaic's width."""
    theme, bottom = sheet.theme, mosaic_height(tiles)
    width, height = _tile_size(tiles)
    shortened = title if len(title) <= _LONGEST else f"{title[: _LONGEST - 1]}…"
    sheet.text(_EDGE, 0.31, shortened, fontsize=13, fontweight="bold")
    sheet.text(_EDGE, 0.5, subtitle, color=theme.faint, fontsize=8.5)
    # One frame for all pictures, in inches: frames are what takes time.
    area, looks = sheet.axes(0, 0, WIDTH, bottom), _looks(tiles)
    area.set_axis_off()
    for n, tile in enumerate(tiles):
        row, column = divmod(n, _PAIRS)
        x_left = _EDGE + column * (2 * width + _GAP)
        top = _HEADER + row * (_CAPTION + height + _GAP / 2) + _CAPTION
        color = theme.unhealthy if tile.unhealthy else theme.healthy
        decision = f"{'unhealthy' if tile.unhealthy else 'healthy'}  p = {tile.probability:.2f}"
        sheet.text(x_left, top - 0.06, f"slice {tile.level}", fontweight="bold")
        sheet.text(x_left + 2 * width, top - 0.06, decision, color=color, ha="right")
        for pixels, x, look in ((tile.image, x_left, looks[0]), (tile.H, x_left + width, looks[1])):
            drawn = _draw(area, pixels, tile.mask, (x, top, width, height), look)
            for edge, side, letter in ((x + 0.05, "left", "R"), (x + width - 0.05, "right", "L")):
                area.text(
                    edge, top + 0.05, letter, color=theme.faint, fontsize=8, ha=side, va="top"
                )
    area.set(xlim=(0, WIDTH), ylim=(bottom, 0))
    scale = sheet.axes(WIDTH - _EDGE - 2.2, 0.2, 2.2, 0.1)
    bar = sheet.figure.colorbar(drawn, cax=scale, orientation="horizontal", extend="max")
    bar.outline.set_visible(False)
    scale.tick_params(colors=theme.faint, labelsize=7, length=2, pad=1.5)
    scale.locator_params(nbins=4)
    sheet.text(WIDTH - _EDGE - 2.3, 0.3, "anomaly map H", color=theme.faint, fontsize=8, ha="right")
    sheet.text(_EDGE, bottom - 0.12, _FOOT, color=theme.faint, fontsize=7.5)


def mosaic(tiles: Sequence[Tile], title: str, subtitle: str) -> bytes:
    """The slices alone, as PNG; within :func:`anofpdm.runtime.report.sheet.drawing`."""
    sheet = Sheet(WIDTH, mosaic_height(tiles), DARK)
    draw_mosaic(sheet, tiles, title, subtitle)
    return sheet.png()


def _tile_size(tiles: Sequence[Tile]) -> tuple[float, float]:
    """Width and height in inches of one of the two pictures of a slice."""
    width = (WIDTH - 2 * _EDGE - (_PAIRS - 1) * _GAP) / (2 * _PAIRS)
    rows, columns = tiles[0].image.shape
    return width, width * rows / columns


@dataclass(frozen=True)
class _Look:
    """How pixels are drawn."""

    colors: str  # of matplotlib
    low: float  # the value of the first colour
    high: float  # the value of the last
    outline: str  # colour of the mask's outline
    thick: float  # its width


def _looks(tiles: Sequence[Tile]) -> tuple[_Look, _Look]:
    """Of images and of maps: the same on all slices."""
    values = np.concatenate([tile.image.ravel() for tile in tiles])
    inside = values[values > AIR]
    white = float(np.quantile(inside, 0.995)) if len(inside) else 1.0
    brightest = float(np.quantile(np.stack([tile.H for tile in tiles]), 0.999))
    return (
        _Look("gray", -1.0, white, RED, 1.3),
        _Look("inferno", 0.0, max(brightest, float(np.finfo(np.float32).tiny)), "#ffffff", 0.6),
    )


def _draw(
    area: "Axes",
    pixels: NDArray[np.float32],
    mask: NDArray[np.bool_],
    place: tuple[float, float, float, float],
    look: _Look,
) -> "AxesImage":
    """Draw (h, w) pixels and a mask's outline at (left, top, width, height) of an area."""
    x_left, top, width, height = place
    drawn = area.imshow(
        pixels, cmap=look.colors, vmin=look.low, vmax=look.high, interpolation="bilinear",
        extent=(x_left, x_left + width, top + height, top), aspect="auto",
    )  # fmt: skip
    if mask.any():
        rows, columns = mask.shape
        x = x_left + (np.arange(columns) + 0.5) * width / columns
        y = top + (np.arange(rows) + 0.5) * height / rows
        area.contour(x, y, mask.astype(float), [0.5], colors=look.outline, linewidths=look.thick)
    return drawn
