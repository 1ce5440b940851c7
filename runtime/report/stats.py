"""The figures of a segmented volume as JSON, and all it takes to make its mask again."""

import hashlib
import platform
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anofpdm import __version__

from ..bundle.options import Options
from ..errors import OptionsError, one_line
from ..results import Segmentation
from .lesions import Space, find_lesions, space_of

SCHEMA_VERSION = 2
ROW = (
    "case", "status", "reason", "volume_ml", "lesions", "largest_ml", "unhealthy_slices", "slices",
    "slices_left_out", "seconds", "device", "preset", "mask_sha256", "notes",
)  # fmt: skip
_LIBRARIES = ("numpy", "scipy", "nibabel", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx",
              "pycuda")  # fmt: skip


def stats(segmentation: Segmentation, name: str) -> dict[str, Any]:
    """The figures of a segmentation, as JSON values.

    ``volume_ml``, ``lesions`` (see :class:`anofpdm.runtime.report.lesions.Lesion`) and ``mask``
    (SHA-256 of its uint8 voxels in C order, with its grid) are the result; ``slices`` has one entry
    a processed axial level: its height, the image-level decision, the probability of being
    unhealthy by the calibrated decision, and the millilitres that the mask marks on it;
    ``slices_left_out`` counts the levels that show too little of a head. ``inputs`` and
    ``provenance`` are what the mask is made of: with these files, this bundle,
    :func:`options_from_stats`, the seed and ``every_slice`` it is made again.

    Parameters
    ----------
    name : of the case
    """
    source = segmentation.geometry.source
    space = space_of(source)
    marked_ml = _marked_ml(segmentation.mask, space)
    seconds = {} if segmentation.seconds is None else {"seconds": segmentation.seconds}
    return {
        "schema_version": SCHEMA_VERSION,
        "case": name,
        "volume_ml": segmentation.volume_ml,
        "lesions": [lesion.as_json() for lesion in find_lesions(segmentation.mask, source)],
        "unhealthy_slices": segmentation.unhealthy_slices,
        "slices_processed": len(segmentation.slices),
        "slices_left_out": space.levels - len(segmentation.slices),
        "slices": [
            {
                "level": result.key,
                "position_mm": space.position_mm(result.key),
                "unhealthy": bool(result.unhealthy),
                "probability": float(result.probability),
                "marked_ml": marked_ml[result.key],
            }
            for result in segmentation.slices
        ],
        **seconds,
        "inputs": [image.as_json() for image in segmentation.inputs],
        "mask": {
            "sha256": mask_sha256(segmentation.mask),
            "shape": list(segmentation.mask.shape),
            "voxel_mm": list(space.voxel_mm),
            "affine_mm": space.affine_mm.tolist(),
        },
        "provenance": {**provenance(segmentation), "versions": versions()},
    }


def provenance(segmentation: Segmentation) -> dict[str, Any]:
    """Everything that decides a mask, as JSON values, with notes and warnings."""
    manifest, plan = segmentation.bundle.manifest, segmentation.plan
    return {
        "anofpdm": __version__,
        "volumes": [image.name for image in segmentation.inputs],
        "bundle": manifest.name,
        "files_sha256": dict(manifest.files),
        "seed": segmentation.seed,
        "device": segmentation.device,
        **plan.as_json(),
        "every_slice": segmentation.every_slice,
        "scored": list(manifest.scored),
        "notes": list(segmentation.notes),
        "warnings": list(plan.calibration.warnings),
    }


def versions() -> dict[str, str]:
    """Of anofpdm, Python, the libraries that are loaded and matter, and the platform."""
    loaded = {
        name: str(getattr(sys.modules[name], "__version__", "unknown"))
        for name in _LIBRARIES
        if name in sys.modules
    }
    # Not platform.platform(), which starts a process to ask for more.
    system = " ".join((platform.system(), platform.release(), platform.machine()))
    python = {"anofpdm": __version__, "python": platform.python_version()}
    return {**python, **loaded, "platform": system}


def stats_row(content: Mapping[str, Any]) -> dict[str, str | float | int]:
    """What :func:`stats` gives as a row of a table of many cases, with the columns :data:`ROW`."""
    lesions, made_by = content["lesions"], content["provenance"]
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
        "device": made_by["device"].partition(";")[0],  # without why not another
        "preset": made_by["preset"],
        "mask_sha256": content["mask"]["sha256"],
        "notes": "; ".join(made_by["notes"]),
    }


def failed_row(case: str, reason: object) -> dict[str, str | float | int]:
    """The row of a case that has no mask: the columns :data:`ROW`, empty but for the reason."""
    return {**dict.fromkeys(ROW, ""), "case": case, "status": "failed", "reason": one_line(reason)}


def options_from_stats(content: Mapping[str, Any]) -> Options:
    """The options by which a bundle gives the same mask again, from :func:`stats` or its file.

    Raises
    ------
    OptionsError
        If another version of anofpdm wrote it, with other keys.
    """
    if (version := content.get("schema_version")) != SCHEMA_VERSION:
        raise OptionsError(
            f"the statistics have schema {version}, this version of anofpdm reads "
            f"{SCHEMA_VERSION}: segment the volume again"
        )
    made_by = content["provenance"]
    return Options(
        preset=made_by["preset"],
        early_stop=made_by["early_stop"] is not None,
        w=made_by["w"],
        Q=made_by["threshold"],
        **made_by["anomaly_map"],
    )


def mask_sha256(mask: NDArray[np.generic]) -> str:
    """Fingerprint of a mask's voxels, as uint8 in C order: the same whatever file holds them."""
    return hashlib.sha256(np.ascontiguousarray(mask, np.uint8).tobytes()).hexdigest()


def _marked_ml(mask: NDArray[np.generic], space: Space) -> list[float]:
    """What is marked, by axial level."""
    others = tuple(axis for axis in range(3) if axis != space.axial)
    counts = np.count_nonzero(mask.reshape(space.shape), axis=others)
    return [int(counts[space.level(level)]) * space.voxel_ml for level in range(space.levels)]
