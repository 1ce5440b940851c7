"""The figures of a segmented volume as JSON: what was found, and all it takes to find it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.options import Setup
from ..cli.discovery import stem_of
from ..cli.source import described
from ..results import Segmentation
from ..segmenter import Segmenter
from .lesions import Space, find_lesions, space_of
from .provenance import provenance, versions

SCHEMA_VERSION = 1
ROW = (
    "case", "status", "reason", "volume_ml", "lesions", "largest_ml", "unhealthy_slices", "slices",
    "slices_left_out", "seconds", "device", "preset", "mask_sha256", "notes",
)  # fmt: skip


def stats(
    segmenter: Segmenter,
    found: Segmentation,
    volumes: Sequence[Path] = (),
    every_slice: bool = False,
    case: str | None = None,
    *,
    timed: bool = True,
    inputs: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The figures of a segmentation, as JSON values.

    ``volume_ml``, ``lesions`` (see :class:`anofpdm.runtime.report.lesions.Lesion`) and ``mask``
    (SHA-256 of its uint8 voxels in C order, with its grid) say what was found; ``slices`` has one
    entry a processed axial level: how high it lies, the verdict, the probability of being unhealthy
    by the calibrated decision, and the millilitres that the mask marks on it; ``slices_left_out``
    counts the levels that show too little of a head. ``inputs`` and ``provenance`` are what the
    mask is made of: with these files, this bundle, :func:`as_setup`, the seed and ``every_slice``
    it is made again. Files are called by their names alone, without folders.

    Parameters
    ----------
    volumes : the files that were segmented, in the order of the modalities; none for arrays
    every_slice : as given to :meth:`anofpdm.Segmenter.segment`
    case : what to call the volume; None for the first file's name without its suffix
    timed : whether to say how many seconds it took; without, the same run gives the same figures
    inputs : what :func:`anofpdm.runtime.cli.source.described` said of ``volumes`` when they were
        opened; None to look at them now

    Raises
    ------
    VolumeError
        If a file is no longer there.
    """
    source = found.head.source
    space = space_of(source)
    marked_ml = _marked_ml(found.mask, space)
    return {
        "schema_version": SCHEMA_VERSION,
        "case": case or (_stem(volumes[0]) if volumes else "volume"),
        "volume_ml": found.volume_ml,
        "lesions": [lesion.as_json() for lesion in find_lesions(found.mask, source)],
        "unhealthy_slices": found.unhealthy_slices,
        "slices_processed": len(found.slices),
        "slices_left_out": space.levels - len(found.slices),
        "slices": [
            {
                "level": result.key,
                "position_mm": space.position_mm(result.key),
                "unhealthy": bool(result.unhealthy),
                "probability": float(result.probability),
                "marked_ml": marked_ml[result.key],
            }
            for result in found.slices
        ],
        **({"seconds": found.seconds} if timed else {}),
        "inputs": list(inputs if inputs is not None else described(volumes)),
        "mask": {
            "sha256": mask_sha256(found.mask),
            "shape": list(found.mask.shape),
            "voxel_mm": list(space.voxel_mm),
            "affine_mm": space.affine_mm.tolist(),
        },
        "provenance": {
            **provenance(segmenter, found, volumes, every_slice),
            "versions": versions(),
        },
    }


def stats_row(content: Mapping[str, Any]) -> dict[str, str | float | int]:
    """What :func:`stats` gives as a row of a table of many cases, with the columns :data:`ROW`."""
    lesions, decided = content["lesions"], content["provenance"]
    return {
        "case": content["case"],
        "status": "ok",
        "reason": "",
        "volume_ml": round(content["volume_ml"], 3),
        "lesions": len(lesions),
        "largest_ml": round(lesions[0]["volume_ml"], 3) if lesions else 0.0,
        "unhealthy_slices": content["unhealthy_slices"],
        "slices": content["slices_processed"],
        "slices_left_out": content["slices_left_out"],
        "seconds": round(content["seconds"], 1) if "seconds" in content else "",
        "device": decided["device"].partition(";")[0],  # without why not another
        "preset": decided["preset"],
        "mask_sha256": content["mask"]["sha256"],
        "notes": "; ".join(decided["notes"]),
    }


def failed_row(case: str, reason: object) -> dict[str, str | float | int]:
    """The row of a case that has no mask: the columns :data:`ROW`, empty but for the reason."""
    lines = " ".join(str(reason).split())
    return {**dict.fromkeys(ROW, ""), "case": case, "status": "failed", "reason": lines}


def as_setup(content: Mapping[str, Any]) -> Setup:
    """The wish that makes a bundle decide as it did, from what :func:`stats` gave or from the file
    that it was written to."""
    decided = content["provenance"]
    return Setup(
        preset=decided["preset"],
        early_stop=decided["early_stop"] is not None,
        w=decided["w"],
        Q=decided["threshold"],
        **decided["anomaly_map"],
    )


def mask_sha256(mask: NDArray[np.generic]) -> str:
    """Fingerprint of a mask's voxels, as uint8 in C order: the same whatever file holds them."""
    return hashlib.sha256(np.ascontiguousarray(mask, np.uint8).tobytes()).hexdigest()


def _marked_ml(mask: NDArray[np.generic], space: Space) -> list[float]:
    """What is marked, by axial level."""
    others = tuple(axis for axis in range(3) if axis != space.axial)
    counts = np.count_nonzero(mask.reshape(space.shape), axis=others)
    return [int(counts[space.level(level)]) * space.voxel_ml for level in range(space.levels)]


def _stem(path: Path) -> str:
    return stem_of(path) or (path.stem if path.suffix in (".hdr", ".img") else path.name)
