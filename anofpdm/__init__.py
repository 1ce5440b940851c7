"""Weakly supervised brain-MRI anomaly segmentation with the forward process of diffusion models.

>>> from anofpdm import Segmenter
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anofpdm.runtime.errors import AnofpdmError
    from anofpdm.runtime.results import Segmentation
    from anofpdm.runtime.segmenter import Segmenter
    from anofpdm.runtime.bundle.options import Options

__version__ = "0.1.0"
__all__ = ["AnofpdmError", "Segmentation", "Segmenter", "Options", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Segmenter":
        from anofpdm.runtime.segmenter import Segmenter

        return Segmenter
    if name == "Segmentation":
        from anofpdm.runtime.results import Segmentation

        return Segmentation
    if name == "Options":
        from anofpdm.runtime.bundle.options import Options

        return Options
    if name == "AnofpdmError":
        from anofpdm.runtime.errors import AnofpdmError

        return AnofpdmError
    raise AttributeError(f"module 'anofpdm' has no attribute {name!r}")
