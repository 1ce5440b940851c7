"""HTML from Python values: whatever is text is escaped, always."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | int | Markup


def tag(element: str, /, *content: Content, **attributes: str) -> Markup:
    """An element; ``class_`` and the like lose the underscore, others become hyphens."""
    opening = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{element}{opening}>{join(content)}</{element}>")


def void(element: str, /, **attributes: str) -> Markup:
    """An element without content."""
    return Markup(tag(element, **attributes).removesuffix(f"</{element}>"))


def join(content: Iterable[Content]) -> Markup:
    """One after the other, escaped where it is not HTML."""
    return Markup(
        "".join(one if isinstance(one, Markup) else html.escape(str(one)) for one in content)
    )


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Content]]) -> Markup:
    """A table whose columns and rows have headers: the first cell of a row is its header."""
    columns = join(tag("th", name, scope="col") for name in head)
    lines = join(
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    )
    return tag(
        "div",
        tag(
            "table", tag("caption", caption), tag("thead", tag("tr", columns)), tag("tbody", lines)
        ),
        class_="wide",
        role="region",
        aria_label=caption,
        tabindex="0",
    )


def png(picture: bytes) -> str:
    """The address of a PNG that the page itself holds."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"
