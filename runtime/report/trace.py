"""The evidence for a mask, as JSON: the curves and decisions of every slice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..results import Segmentation, SliceResult
from ..segmenter import Segmenter
from ..util.files import write_json
from .provenance import provenance


def write_trace(
    path: Path,
    segmenter: Segmenter,
    found: Segmentation,
    volumes: Sequence[Path],
    every_slice: bool = False,
) -> None:
    """Write what the paper's figures 2 and 5 are drawn from.

    Per slice: ``M``, ``MSE_h``, ``MSE_0`` with one row a visited timestep ``t`` and one column a
    scored modality; ``cosine`` and ``alignment``, averaged over neighbours where these count;
    ``map_peak``, of the map that is cut; the ``log_odds`` and ``probability`` of the calibrated
    decision on these three; the verdict ``unhealthy``; ``t_e`` and Algorithm 1's ``index`` per
    modality (null where the threshold is fixed), ``Q``, and the pixels that were marked before the verdict.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    fixed = segmenter.setup.Q is not None
    content = {
        **provenance(segmenter, found, volumes, every_slice),
        "slices": [_slice(result, fixed) for result in found.slices],
    }
    write_json(path, content)


def _slice(result: SliceResult, fixed: bool) -> dict[str, Any]:
    """One slice; arrays over visited timesteps hold one row a timestep, one column a modality."""
    return {
        "level": result.key,
        "unhealthy": bool(result.unhealthy),
        "cosine": result.cosine,
        "alignment": result.alignment,
        "map_peak": result.map_peak,
        "log_odds": result.log_odds,
        "probability": result.probability,
        "t": result.timesteps.tolist(),
        "M": result.M.tolist(),
        "MSE_h": result.MSE_h.tolist(),
        "MSE_0": result.MSE_0.tolist(),
        "t_e": result.t_e.tolist(),
        "index": None if fixed else result.index.tolist(),
        "Q": result.Q,
        "pixels": int(result.mask.sum()),
    }
