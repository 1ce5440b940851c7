"""A picture of a segmented volume: its slices, and the curves behind the decisions."""

from pathlib import Path

from ..results import Segmentation
from ..util.files import whole_file
from .curves import HEIGHT, draw_curves
from .mosaic import WIDTH, draw_mosaic, mosaic_height
from .sheet import DARK, Sheet, drawing
from .tiles import tiles

MOST_SLICES = 24


def write_preview(path: Path, segmentation: Segmentation, name: str) -> None:
    """Write a PNG: slices with the mask's outline and the anomaly map, then the curves M_t.

    Radiological convention: the patient's right is on the left. Of more than :data:`MOST_SLICES`
    slices, unhealthy ones are preferred, and evenly chosen. Bytes depend on the arguments and on
    matplotlib's version.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    OutputError
        If the file cannot be written.
    """
    shown_tiles = tiles(segmentation, MOST_SLICES)
    with whole_file(path) as temporary:
        with drawing():
            height = mosaic_height(shown_tiles)
            sheet = Sheet(WIDTH, height + HEIGHT, DARK)
            draw_mosaic(sheet, shown_tiles, name, subtitle(segmentation, len(shown_tiles)))
            modalities = segmentation.bundle.manifest.scored
            draw_curves(sheet, height, segmentation.slices, modalities)
            picture = sheet.png()
        temporary.write_bytes(picture)


def subtitle(segmentation: Segmentation, shown: int) -> str:
    """The result in one line; ``shown``: number of slices in the picture."""
    processed = len(segmentation.slices)
    some = "" if shown == processed else f" · {shown} of these shown"
    return (
        f"{segmentation.volume_ml:.1f} ml marked · {segmentation.unhealthy_slices} of {processed} "
        f"slices unhealthy{some}"
    )
