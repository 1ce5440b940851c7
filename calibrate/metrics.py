"""Metrics of masks and anomaly maps."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def dice(mask: Mask, reference: Mask) -> float:
    """2 |A and B| / (|A| + |B|); 1 when both are empty."""
    total = int(mask.sum()) + int(reference.sum())
    return 2 * int((mask & reference).sum()) / total if total else 1.0


def iou(mask: Mask, reference: Mask) -> float:
    """|A and B| / |A or B|; 1 when both are empty."""
    union = int((mask | reference).sum())
    return int((mask & reference).sum()) / union if union else 1.0


def average_precision(scores: NDArray[np.floating], positive: Mask) -> float:
    """Area under the precision-recall curve, as the sum of precision times gain in recall.

    Parameters
    ----------
    scores, positive : (n,); higher scores should be positive

    Returns
    -------
    0..1; NaN without positives
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    if not len(ranked) or not hits[-1]:
        return float("nan")
    # Equal scores are one operating point: the last of each run.
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    precision = hits[last] / (last + 1)
    recall = hits[last] / hits[-1]
    return float(np.sum(np.diff(np.append(0.0, recall)) * precision))


def area_under_roc(scores: NDArray[np.floating], positive: Mask) -> float:
    """Chance that a positive scores higher than a negative, ties half; NaN for one class."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    wins = ranks[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(wins / (n_positive * n_negative))
