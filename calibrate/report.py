"""The result of a calibration in lines of text."""

from collections.abc import Iterator

from anofpdm.runtime.bundle.calibration import Calibration, EarlyStop
from anofpdm.runtime.method.decision import DECISIONS

from .choose import Choice, Labels


def report(choice: Choice, calibration: Calibration, labels: Labels) -> Iterator[str]:
    """Every candidate, the choice, where M_t peaks, and the effect of early stop."""
    for c in choice.candidates:
        yield (
            f"L {c.L:4d}  w {c.w:5g}  cosine: accuracy {c.cosine_accuracy:.3f}  "
            f"calibrated: accuracy {_accuracy(c.calibrated_accuracy)}"
        )
    cross_validated = ", ".join(
        f"{name} {_accuracy(choice.cross_validated.get(name))}" for name in DECISIONS
    )
    yield f"accuracy on patients left out of the whole choice: {cross_validated}"
    best, unhealthy = choice.best, labels.unhealthy
    yield (
        f"chosen: {choice.decision}, L = {best.L}, w = {best.w:g}, accuracy "
        f"{_accuracy(best.accuracy(choice.decision))} on {len(unhealthy)} slices (calling all the "
        f"same: {max(unhealthy.mean(), 1 - unhealthy.mean()):.3f})"
    )
    strengths = [c.w for c in choice.candidates if c.L == best.L]
    if len(strengths) > 1 and best.w == max(strengths):
        yield f"w = {best.w:g} is the largest that was tried: larger ones may do as well (--w)"
    peaks = calibration.peaks
    if peaks:
        yield (
            f"M_t peaks at t = {peaks.healthy_t_e:.0f} on healthy and {peaks.unhealthy_t_e:.0f} on "
            f"unhealthy slices (medians); {peaks.at_L:.0%} of all have their largest M_t at L"
        )
    yield _early_stop(calibration.early_stop)


def _early_stop(stop: EarlyStop | None) -> str:
    if stop is None:
        return "early stop: no rule that was tried saves a tenth of the steps"
    return (
        f"early stop ({'on' if stop.safe else 'off'} by default): {stop.patience} steps below "
        f"{stop.drop:g} of the maximum; t_e kept on {stop.agreement:.1%} of the slices, accuracy "
        f"{stop.accuracy:.3f} instead of {stop.full_accuracy:.3f}, {stop.mean_steps:.1f} of "
        f"{stop.full_steps} steps"
    )


def _accuracy(accuracy: float | None) -> str:
    return "unknown" if accuracy is None else f"{accuracy:.3f}"
