"""(replaced when the page is there)"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..results import Segmentation


def write_report(
    path: Path, found: Segmentation, content: Mapping[str, Any], title: str = ""
) -> None:
    raise NotImplementedError
