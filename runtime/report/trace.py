"""The curves and decisions of every slice, as JSON: what the paper's figures are drawn from."""

from typing import Any

from ..results import Segmentation, SliceResult
from .stats import SCHEMA_VERSION, provenance


def trace(segmentation: Segmentation, name: str) -> dict[str, Any]:
    """What the paper's figures 2 and 5 are drawn from, with the provenance.

    Per slice: ``M``, ``MSE_h``, ``MSE_0`` with one row a visited timestep ``t`` and one column a
    scored modality; ``cosine`` and ``alignment``, averaged over the window of neighbours;
    ``map_peak``, of the map that is cut; the ``log_odds`` and ``probability`` of the calibrated
    decision on these three; the image-level decision ``unhealthy``; ``t_e`` and Algorithm 1's
    ``index`` per modality (null where the threshold is fixed), ``Q``, and the pixels that are
    marked before the decision gates them.
    """
    fixed = segmentation.plan.Q is not None
    slices = [_slice(result, fixed) for result in segmentation.slices]
    return {
        "schema_version": SCHEMA_VERSION,
        "case": name,
        **provenance(segmentation),
        "slices": slices,
    }


def _slice(result: SliceResult, fixed: bool) -> dict[str, Any]:
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
