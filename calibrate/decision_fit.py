"""Fitting the image-level decision to labels, and splits that leave patients out of the fit."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from anofpdm.runtime.method.decision import LogisticDecision, SliceStatistics

Float64 = NDArray[np.float64]
Flags = NDArray[np.bool_]
Names = NDArray[np.str_]
# Half of it, times the squared weights of the standardised statistics, is added to the summed loss.
_PENALTY = 3.0
_FOLDS = 10


def fit(statistics: SliceStatistics, unhealthy: Flags) -> LogisticDecision:
    """Logistic regression with a ridge penalty on the standardised statistics.

    Parameters
    ----------
    statistics : of N slices, see :mod:`anofpdm.runtime.method.decision`
    unhealthy : (N,) image-level labels, both classes
    """
    X = statistics.features().T
    center, scale = X.mean(axis=0), X.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    Z, sign = (X - center) / scale, np.where(unhealthy, 1.0, -1.0)

    def loss(parameters: Float64) -> tuple[float, Float64]:
        margin = sign * (parameters[0] + Z @ parameters[1:])
        slope = -sign * np.exp(-np.logaddexp(0, margin))  # derivative of the loss by the score
        gradient = np.concatenate([[slope.sum()], Z.T @ slope + _PENALTY * parameters[1:]])
        ridge = _PENALTY / 2 * np.square(parameters[1:]).sum()
        return float(np.logaddexp(0, -margin).sum() + ridge), gradient

    optimum = minimize(loss, np.zeros(1 + X.shape[1]), jac=True, method="BFGS").x
    weights = optimum[1:] / scale
    return LogisticDecision(
        float(optimum[0] - weights @ center), *(float(weight) for weight in weights)
    )


def leave_patients_out(patients: Names, unhealthy: Flags) -> Iterator[tuple[Flags, Flags]]:
    """Split slices, patient by patient or in ten groups of patients.

    Groups without which the slices are all of one class are skipped.

    Yields
    ------
    fitted, tested : (N,) bool each, the slices to fit to and those to test on
    """
    names = np.unique(patients)
    for k in range(min(_FOLDS, len(names))):
        tested = np.isin(patients, names[k::_FOLDS])
        remaining = unhealthy[~tested]
        if remaining.any() and not remaining.all():
            yield ~tested, tested


def best_threshold(
    statistic: NDArray[np.float64], unhealthy: NDArray[np.bool_]
) -> tuple[float, float]:
    """The threshold of best accuracy for "unhealthy when the statistic is at most this".

    It is the middle between two neighbouring values. Among equally accurate ones, the widest gap
    between neighbours is chosen.

    Returns
    -------
    threshold, accuracy
    """
    order = np.argsort(statistic)
    values, labels = statistic[order], unhealthy[order]
    # Position i: the i smallest are called unhealthy.
    correct = np.concatenate([[0], np.cumsum(labels)]) + np.concatenate(
        [np.cumsum(~labels[::-1])[::-1], [0]]
    )
    margin = 1e-6 * max(1.0, float(np.abs(values).max()))
    edges = np.concatenate([[values[0] - margin], values, [values[-1] + margin]])
    gap = np.diff(edges)
    correct = np.where(gap > 0, correct, -1)
    i = max(range(len(correct)), key=lambda j: (correct[j], gap[j]))
    return float((edges[i] + edges[i + 1]) / 2), float(correct[i] / len(values))
