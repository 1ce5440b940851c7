"""Drawing with matplotlib's Agg canvas alone: no windows, no global state, nothing left on disk."""

import io
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..util.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 130
# What drawing changes for a while belongs to the process.
_ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class Theme:
    """Colours; the colour-blind can tell `healthy` from `unhealthy`, too."""

    paper: str  # of the background
    ink: str  # of text
    faint: str  # of what matters less
    line: str  # of grids
    healthy: str  # of healthy slices
    unhealthy: str  # of unhealthy slices


LIGHT = Theme("#ffffff", "#1b2430", "#5b6675", "#d9dee5", "#0072b2", "#d55e00")
DARK = Theme("#0f1318", "#eef2f6", "#9aa6b4", "#2c3540", "#56b4e9", "#ff9c4a")


class Sheet:
    """A picture, measured in inches from its top left corner."""

    def __init__(self, width: float, height: float, theme: Theme) -> None:
        self.width, self.height, self.theme = width, height, theme
        figure = require("matplotlib.figure", "report").Figure
        self.figure: Figure = figure((width, height), dpi=_DPI, facecolor=theme.paper)

    def axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        """Axes whose frame is this rectangle."""
        bottom = self.height - top - height
        return self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height),
            facecolor=self.theme.paper,
        )

    def text(self, left: float, top: float, text: str, **how: Any) -> None:
        """Plain text (no mathematics) in one line, at its baseline unless told otherwise."""
        place = (left / self.width, 1 - top / self.height)
        text = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
        how = {"color": self.theme.ink, "fontsize": 9, "parse_math": False, **how}
        self.figure.text(*place, text, **how)

    def png(self) -> bytes:
        """The picture as a PNG file without metadata: the same sheet gives the same bytes."""
        canvas = require("matplotlib.backends.backend_agg", "report").FigureCanvasAgg
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # Of letters that its font lacks, in a title; an empty box is drawn.
            warnings.filterwarnings("ignore", message="Glyph")
            canvas(self.figure).print_png(buffer, metadata={"Software": None})
        return buffer.getvalue()


@contextmanager
def drawing() -> Iterator[ModuleType]:
    """matplotlib with its own defaults, whatever the user's are.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    with _ONE_AT_A_TIME:
        matplotlib = _matplotlib()
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            yield matplotlib


def _matplotlib() -> ModuleType:
    """Import it without its cache of fonts in the user's home.

    It reads and writes that cache once, when it looks for fonts first. The folder it gets is gone
    right afterwards, unless the user has chosen one.
    """
    if "matplotlib.font_manager" in sys.modules or os.environ.get("MPLCONFIGDIR"):
        require("matplotlib.font_manager", "report")
    else:
        with tempfile.TemporaryDirectory(prefix="anofpdm-") as folder:
            os.environ["MPLCONFIGDIR"] = folder
            try:
                require("matplotlib.font_manager", "report")
                require("matplotlib", "report").get_configdir()  # remembered from here on
            finally:
                del os.environ["MPLCONFIGDIR"]
    return require("matplotlib", "report")
