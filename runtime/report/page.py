"""A segmented volume as one page to read or print: nothing in it runs, nothing is fetched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..results import Segmentation
from ..util.files import whole_file
from .curves import curves
from .html import (
    Markup,
    headline,
    join,
    lesion_table,
    method,
    png,
    provenance_table,
    slice_table,
    tag,
    void,
)
from .mosaic import mosaic
from .preview import MOST_SLICES, subtitle
from .sheet import DARK, LIGHT, drawing
from .stats import stats
from .tiles import Tile, tiles

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_PURPOSE = "For research, not for diagnosis."
_CURVES = (
    "Curves of the divergence M_t over the timesteps, healthy and unhealthy slices in two colours, "
    "with the timestep t_e of each slice marked at its peak."
)
_CAUTION = (
    "A healthy decision does not rule out disease, and what is marked need not be a lesion: look "
    "at the images."
)


def write_report(path: Path, segmentation: Segmentation, name: str) -> None:
    """Write a self-contained HTML file.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    OutputError
        If the file cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(page(segmentation, name).encode("utf-8", "replace"))


def page(segmentation: Segmentation, name: str) -> str:
    """The page's HTML; see :func:`write_report`."""
    shown_tiles, content = tiles(segmentation, MOST_SLICES), stats(segmentation, name)
    scored = segmentation.bundle.manifest.scored
    with drawing():
        slices = mosaic(shown_tiles, name, subtitle(segmentation, len(shown_tiles)))
        light, dark = (curves(segmentation.slices, theme, scored) for theme in (LIGHT, DARK))
    head = join(
        [
            void("meta", charset="utf-8"),
            void("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            void("meta", name="viewport", content="width=device-width, initial-scale=1"),
            void("meta", name="color-scheme", content="light dark"),
            void("meta", name="robots", content="noindex"),
            tag("title", f"{name} - anofpdm"),
            tag("style", Markup(_STYLE.read_text(encoding="utf-8"))),
        ]
    )
    body = join(
        [_header(content), _main(content, shown_tiles, slices, light, dark), _footer(content)]
    )
    return f"<!DOCTYPE html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"


def _header(content: Mapping[str, Any]) -> Markup:
    made_by = content["provenance"]
    under = (
        f"Anomaly segmentation of {', '.join(made_by['volumes']) or 'an array'} by anofpdm "
        f"{made_by['anofpdm']}, model {made_by['bundle']}, preset {made_by['preset']}"
    )
    notice = tag("p", tag("strong", _PURPOSE), f" {_CAUTION}", class_="notice", role="note")
    return tag("header", tag("h1", content["case"]), tag("p", under, class_="under"), notice)


def _main(
    content: Mapping[str, Any],
    shown_tiles: tuple[Tile, ...],
    slices: bytes,
    light: bytes,
    dark: bytes,
) -> Markup:
    made_by = content["provenance"]
    lines = [*made_by["notes"], *(f"Calibration: {warning}" for warning in made_by["warnings"])]
    parts = [headline(content)]
    if lines:
        listed = tag("ul", *(tag("li", line) for line in lines), class_="lines")
        parts += [tag("h2", "Notes and warnings"), listed]
    parts += [
        tag("h2", "Slices"),
        _figure(
            void("img", src=png(slices), alt=_described(shown_tiles)),
            "Left of each pair: the image, with the mask outlined in red. Right: the anomaly map "
            "H, the same scale on all slices. Radiological convention: the patient's right is on "
            "the left. Slices are counted from the feet up, from 0.",
        ),
        tag("h2", "Divergence"),
        _figure(
            tag(
                "picture",
                void("source", srcset=png(dark), media="screen and (prefers-color-scheme: dark)"),
                void("img", src=png(light), alt=_CURVES),
            ),
            "M_t over the visited timesteps, one thin line a slice. Where M_t peaks (t_e) decides "
            "the map; how high goes into the threshold, unless it is fixed.",
        ),
        tag("h2", "Lesions"),
        lesion_table(content),
        tag("h2", "Slice by slice"),
        slice_table(content),
        tag("h2", "Method"),
        tag("p", method(content)),
        tag("h2", "Provenance"),
        provenance_table(content),
    ]
    return tag("main", *parts)


def _figure(picture: Markup, caption: str) -> Markup:
    return tag("figure", picture, tag("figcaption", caption))


def _described(shown_tiles: tuple[Tile, ...]) -> str:
    marked = ", ".join(str(tile.level) for tile in shown_tiles if tile.mask.any())
    return (
        f"{len(shown_tiles)} axial slices, each beside its anomaly map. The mask is outlined on "
        f"{f'slices {marked}' if marked else 'none of them'}."
    )


def _footer(content: Mapping[str, Any]) -> Markup:
    versions = content["provenance"]["versions"]
    took = f" in {content['seconds']:.0f} s" if "seconds" in content else ""
    text = f"{_PURPOSE} Made by anofpdm {versions['anofpdm']}{took}."
    return tag("footer", tag("p", text))
