"""The evidence for a mask, as JSON: the curves and decisions of every slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anofpdm import __version__

from .files import write_json
from .segmenter import Segmentation, Segmenter, SliceResult


def write_trace(
    path: Path, segmenter: Segmenter, found: Segmentation, volumes: Sequence[Path]
) -> None:
    """Write what the paper's figures 2 and 5 are drawn from; see README for the fields.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    setup, manifest = segmenter.setup, segmenter.bundle.manifest
    calibration = setup.calibration
    content = {
        "anofpdm": __version__,
        "volumes": [volume.name for volume in volumes],
        "bundle": manifest.name,
        "files_sha256": dict(manifest.files),
        "seed": segmenter.seed,
        "preset": setup.preset,
        "conditions": asdict(calibration.conditions),
        "early_stop": asdict(setup.stop) if setup.stop else None,
        "anomaly_map": asdict(setup.rule),
        "w": calibration.w,
        "verdict": calibration.verdict,
        "Cos_w": calibration.Cos_w,
        "H_99": calibration.H_99,
        "M_max": list(calibration.M_max),
        "quantiles": [calibration.a, calibration.b],
        "scored": list(manifest.scored),
        "notes": list(found.notes),
        "slices": [_slice(result) for result in found.slices],
    }
    write_json(path, content)


def _slice(result: SliceResult) -> dict[str, Any]:
    """One slice; arrays over visited timesteps hold one row a timestep, one column a modality."""
    return {
        "level": result.key,
        "unhealthy": bool(result.unhealthy),
        "cosine": result.cosine,
        "peak": result.peak,
        "t": result.timesteps.tolist(),
        "M": result.M.tolist(),
        "MSE_h": result.MSE_h.tolist(),
        "MSE_0": result.MSE_0.tolist(),
        "t_e": result.t_e.tolist(),
        "index": result.index.tolist(),
        "Q": result.Q,
        "pixels": int(result.mask.sum()),
    }
