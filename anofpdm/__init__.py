"""Weakly supervised brain-MRI anomaly segmentation with the forward process of diffusion models.

>>> from anofpdm import Segmenter
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anofpdm.runtime.bundle.options import Options
    from anofpdm.runtime.errors import AnofpdmError
    from anofpdm.runtime.results import Segmentation
    from anofpdm.runtime.segmenter import Segmenter

__version__ = "0.1.0"
__all__ = ["AnofpdmError", "Options", "Segmentation", "Segmenter", "__version__"]
_HOMES = {
    "AnofpdmError": "anofpdm.runtime.errors",
    "Options": "anofpdm.runtime.bundle.options",
    "Segmentation": "anofpdm.runtime.results",
    "Segmenter": "anofpdm.runtime.segmenter",
}


def __getattr__(name: str) -> object:
    """The public names, each imported when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'anofpdm' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
