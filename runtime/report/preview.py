"""A picture of a segmented volume: its slices, and the curves behind the decisions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..results import Segmentation
from ..util.files import whole_file
from .curves import HEIGHT, draw_curves
from .mosaic import WIDTH, draw_mosaic, mosaic_height
from .sheet import DARK, Sheet, drawing
from .tiles import tiles

MOST_SLICES = 24


def write_preview(
    path: Path,
    found: Segmentation,
    title: str = "anofpdm",
    *,
    most_slices: int = MOST_SLICES,
    modalities: Sequence[str] = (),
) -> None:
    """Write a PNG: slices with the mask's outline and the anomaly map, then the curves M_t.

    The patient's right is on the left. Bytes depend on the arguments and on matplotlib's version.

    Parameters
    ----------
    most_slices : beyond so many, unhealthy slices are preferred, and evenly chosen
    modalities : the names of the scored modalities, for the curves of bundles with several

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    OutputError
        If the file cannot be written.
    """
    shown = tiles(found, most_slices)
    with whole_file(path) as beside:
        with drawing():
            height = mosaic_height(shown)
            sheet = Sheet(WIDTH, height + HEIGHT, DARK)
            draw_mosaic(sheet, shown, title, subtitle(found, len(shown)))
            draw_curves(sheet, height, found.slices, modalities)
            picture = sheet.png()
        beside.write_bytes(picture)


def subtitle(found: Segmentation, shown: int) -> str:
    """What was found, in one line."""
    processed = len(found.slices)
    some = "" if shown == processed else f" · {shown} of these shown"
    return (
        f"{found.volume_ml:.1f} ml marked · {found.unhealthy_slices} of {processed} slices "
        f"unhealthy{some}"
    )
