"""What healthy slices look like to the network, and how far off a volume may be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.volume.plausibility import Plausibility, log_curve

from .choose import Labels

_SMALLEST_SPREAD, _SMALLEST_LIMIT = 1e-3, 1e-3
# A volume may be a little further off than any that the limit was taken from.
_MARGIN = 1.1


def fit_plausibility(MSE_0: NDArray[np.float64], labels: Labels) -> Plausibility | None:
    """The error curve of healthy slices, and the distance of the patient who is furthest off.

    Each patient's distance is from the healthy slices of the others: it is what a new one's would
    be. None where there are fewer than three patients.

    Parameters
    ----------
    MSE_0 : (N, n, C), of the full sweep
    """
    names = np.unique(labels.patients)
    if len(names) < 3:
        return None
    distances = []
    for name in names:
        own = labels.patients == name
        others = _reference(MSE_0[~own & ~labels.unhealthy])
        if others is None:
            return None
        distances.append(np.median([others.distance(curve) for curve in MSE_0[own]]))
    known = _reference(MSE_0[~labels.unhealthy])
    assert known
    return Plausibility(
        known.mean, known.spread, max(_SMALLEST_LIMIT, _MARGIN * float(max(distances)))
    )


def _reference(MSE_0: NDArray[np.float64]) -> Plausibility | None:
    if len(MSE_0) < 2:
        return None
    curves = log_curve(MSE_0)
    spread = np.maximum(curves.std(axis=0), _SMALLEST_SPREAD)
    return Plausibility(tuple(curves.mean(axis=0).tolist()), tuple(spread.tolist()), 1.0)
