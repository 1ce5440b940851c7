"""Where a mask comes from: what trace and statistics both say of it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anofpdm import __version__

from ..results import Segmentation
from ..segmenter import Segmenter

_ALWAYS = ("numpy", "scipy", "nibabel")
_IF_USED = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pycuda")


def provenance(
    segmenter: Segmenter,
    found: Segmentation,
    volumes: Sequence[Path],
    every_slice: bool = False,
) -> dict[str, Any]:
    """Everything that decides a mask, as JSON values, with notes and warnings.

    Files are called by their names alone: folders are often named after patients.

    Parameters
    ----------
    volumes : the files that were segmented, in the order of the modalities; may be empty
    every_slice : as given to :meth:`anofpdm.Segmenter.segment`
    """
    manifest = segmenter.bundle.manifest
    return {
        "anofpdm": __version__,
        "volumes": [volume.name for volume in volumes],
        "bundle": manifest.name,
        "files_sha256": dict(manifest.files),
        "seed": segmenter.seed,
        "device": segmenter.backend.device,
        **segmenter.setup.as_json(),
        "every_slice": every_slice,
        "scored": list(manifest.scored),
        "notes": [_without_folders(note, volumes) for note in found.notes],
        "warnings": list(segmenter.setup.calibration.warnings),
    }


def versions() -> dict[str, str]:
    """Of what computes: anofpdm, Python, the platform, and packages that matter and are loaded."""
    found = {"anofpdm": __version__, "python": platform.python_version()}
    for name in (*_ALWAYS, *_IF_USED):
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    # Not platform.platform(), which starts a process to ask for more.
    system = " ".join((platform.system(), platform.release(), platform.machine()))
    return {**found, "platform": system}


def _without_folders(note: str, volumes: Sequence[Path]) -> str:
    for volume in volumes:
        for path in (volume.resolve(), volume.absolute(), volume):
            note = note.replace(str(path), volume.name)
    return note
