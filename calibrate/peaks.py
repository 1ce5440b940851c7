"""Where M_t peaks, and warnings where the paper's rules fail on a network."""

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.bundle.calibration import PeakReport

from .choose import Choice, Labels
from .sweep import Curves

# Share of the unhealthy slices whose M_t is largest at L; above it t_e only repeats L.
_NO_PEAK = 0.5


def peak_report(curves: Curves, w: float, labels: Labels) -> PeakReport:
    """Where M_t of one guidance strength is largest, over slices and modalities."""
    last, t_e = _t_e(curves, w)
    return PeakReport(
        at_L=float((t_e == last).mean()),
        healthy_t_e=float(np.median(t_e[~labels.unhealthy])),
        unhealthy_t_e=float(np.median(t_e[labels.unhealthy])),
    )


def failures(curves: Curves, choice: Choice, labels: Labels) -> tuple[str, ...]:
    """Where a rule of the paper fails: a line each, with the remedy."""
    best, lines = choice.best, []
    last, t_e = _t_e(curves, best.w)
    at_L = float((t_e[labels.unhealthy] == last).mean())
    if at_L > _NO_PEAK:
        lines.append(
            f"no peak: on {at_L:.0%} of the unhealthy slices M_t is largest at the last "
            f"timestep, {last}, so t_e (eq. 21) is where L is: train longer, with high noise, or "
            "compare several L"
        )
    majority = max(labels.unhealthy.mean(), 1 - labels.unhealthy.mean())
    accuracy = choice.cross_validated[choice.decision]
    if accuracy is not None and accuracy <= majority:
        lines.append(
            f"no decision: the {choice.decision} is right on {accuracy:.1%} of the slices of "
            f"left-out patients, calling all the same on {majority:.1%}: masks of single slices "
            "may be of use, decisions are not"
        )
    return tuple(lines)


def _t_e(curves: Curves, w: float) -> tuple[int, NDArray[np.int64]]:
    """The last visited timestep, and t_e (eq. 21) of each slice and modality: (N, C)."""
    M = curves.M[:, curves.w.index(w)]
    return int(curves.timesteps[-1]), curves.timesteps[M.argmax(axis=1)]
