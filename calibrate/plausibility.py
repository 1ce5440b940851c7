"""Fitting the plausibility check: how healthy slices look to the network, and how far off is far.

The check itself is in :mod:`anofpdm.runtime.volume.plausibility`.
"""

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.volume.plausibility import Plausibility, log_curve

from .choose import Labels

_SMALLEST_SPREAD, _SMALLEST_LIMIT = 1e-3, 1e-3
# A volume may be a little further off than the furthest patient.
_MARGIN = 1.1


def fit_plausibility(MSE_0: NDArray[np.float64], labels: Labels) -> Plausibility | None:
    """The error curve of healthy slices, and the distance of the patient who is furthest off.

    Each patient's distance is from the healthy slices of the other patients, as a new patient's
    would be. None where there are fewer than three patients.

    Parameters
    ----------
    MSE_0 : (N, n, C), of the full sweep
    """
    names = np.unique(labels.patients)
    if len(names) < 3:
        return None
    distances = []
    for name in names:
        of_patient = labels.patients == name
        others = _reference(MSE_0[~of_patient & ~labels.unhealthy])
        if others is None:
            return None
        distances.append(np.median([others.distance(curve) for curve in MSE_0[of_patient]]))
    healthy = _reference(MSE_0[~labels.unhealthy])
    assert healthy
    return Plausibility(
        healthy.mean, healthy.spread, max(_SMALLEST_LIMIT, _MARGIN * float(max(distances)))
    )


def _reference(MSE_0: NDArray[np.float64]) -> Plausibility | None:
    """Mean and spread of curves, with a limit of 1; None for fewer than two."""
    if len(MSE_0) < 2:
        return None
    curves = log_curve(MSE_0)
    spread = np.maximum(curves.std(axis=0), _SMALLEST_SPREAD)
    return Plausibility(tuple(curves.mean(axis=0).tolist()), tuple(spread.tolist()), 1.0)
