"""The threshold of best accuracy on labelled slices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def best_threshold(
    statistic: NDArray[np.float64], unhealthy: NDArray[np.bool_]
) -> tuple[float, float]:
    """The threshold of best accuracy for "unhealthy when the statistic is at most this".

    Lies half-way between the two neighbouring values. Among equally accurate ones, the widest gap
    between neighbours is taken.

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
