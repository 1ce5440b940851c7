"""Fitting the calibrated verdict, and judging it on patients that the fit has not seen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from anofpdm.runtime.method.decision import Logistic, Statistics

Float64 = NDArray[np.float64]
Flags = NDArray[np.bool_]
Names = NDArray[np.str_]
# Half of it, times the squares of the weights of the standardised statistics, is added to the sum
# of the slices' losses.
_PENALTY = 3.0
_FOLDS = 10


def fit(statistics: Statistics, unhealthy: Flags) -> Logistic:
    """Logistic regression with a ridge penalty on the standardised statistics.

    Parameters
    ----------
    statistics : of N slices, see :mod:`anofpdm.runtime.method.decision`
    unhealthy : (N,) image-level labels, both classes
    """
    X = statistics.features().T
    centre, scale = X.mean(axis=0), X.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    Z, sign = (X - centre) / scale, np.where(unhealthy, 1.0, -1.0)

    def loss(parameters: Float64) -> tuple[float, Float64]:
        margin = sign * (parameters[0] + Z @ parameters[1:])
        pull = -sign * np.exp(-np.logaddexp(0, margin))  # derivative of the loss by the score
        gradient = np.concatenate([[pull.sum()], Z.T @ pull + _PENALTY * parameters[1:]])
        ridge = _PENALTY / 2 * np.square(parameters[1:]).sum()
        return float(np.logaddexp(0, -margin).sum() + ridge), gradient

    found = minimize(loss, np.zeros(1 + X.shape[1]), jac=True, method="BFGS").x
    weights = found[1:] / scale
    return Logistic(float(found[0] - weights @ centre), *(float(weight) for weight in weights))


def left_out(patients: Names, unhealthy: Flags) -> Iterator[tuple[Flags, Flags]]:
    """Which slices to fit to and which to judge, patient by patient or in ten groups of patients;
    groups whose rest holds one class only are passed over."""
    names = np.unique(patients)
    for k in range(min(_FOLDS, len(names))):
        judged = np.isin(patients, names[k::_FOLDS])
        rest = unhealthy[~judged]
        if rest.any() and not rest.all():
            yield ~judged, judged
