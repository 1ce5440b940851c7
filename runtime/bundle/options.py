"""What a user may choose at run time, and which calibration of a bundle allows it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import BundleError, SetupError
from ..method.anomaly_map import MapRule
from ..method.early_stop import StopRule
from ..method.process import Process
from ..refine.through_plane import Ensemble
from .bundle import CALIBRATION, Bundle
from .calibration import LOWERED, Calibration, Conditions

_PICKS = ("encoding", "L", "stride", "spacing", "precision")
PRECISIONS = ("fp32", *LOWERED)


@dataclass(frozen=True)
class Setup:
    """A wish. None leaves the choice to the bundle.

    ``preset``: the name of a calibration; ``encoding``: ``ddim`` or ``ddpm``; ``L``, ``stride``,
    ``spacing`` (``even`` or ``log-snr``): which timesteps are visited; ``precision``: ``fp32``, or
    ``bf16``, which the CPU computes faster. These pick one of the bundle's calibrations.

    ``early_stop``: whether slices may leave before L, by the calibrated rule; ``w``: another
    guidance strength, one that was tried in the calibration; ``anomaly_map``, ``sub_map``,
    ``t_e_ratio``: see :class:`anofpdm.runtime.method.anomaly_map.MapRule`; ``Q``: a fixed threshold in
    place of the calibration's. Except for ``anomaly_map``, these last are for ablations. With
    another map than the calibration's the cosine decides, and slices go to L.
    """

    preset: str | None = None
    encoding: str | None = None
    L: int | None = None
    stride: int | None = None
    spacing: str | None = None
    precision: str | None = None
    early_stop: bool | None = None
    anomaly_map: str | None = None
    w: float | None = None
    sub_map: str = "residual"
    t_e_ratio: float = 1.0
    Q: float | None = None


@dataclass(frozen=True)
class Resolved:
    """A wish fulfilled: everything that decides a mask, but for the volume, network and seed.

    ``ensemble``: who counts for the map that is cut.
    """

    preset: str
    calibration: Calibration
    process: Process
    stop: StopRule | None
    rule: MapRule
    Q: float | None
    ensemble: Ensemble

    def as_json(self) -> dict[str, Any]:
        """What was decided, as JSON values."""
        c = self.calibration
        return {
            "preset": self.preset,
            "conditions": asdict(c.conditions),
            "early_stop": asdict(self.stop) if self.stop else None,
            "anomaly_map": asdict(self.rule),
            "threshold": self.Q,
            "w": c.w,
            "verdict": c.verdict,
            "Cos_w": c.Cos_w,
            "logistic": asdict(c.logistic),
            "M_max": list(c.M_max),
            "quantiles": [c.a, c.b],
            "threshold_rule": c.threshold,
            "neighbours_mm": c.neighbours_mm,
            "mirrored": c.mirrored,
            "guided_mm": c.guided_mm,
            "guided_pixels": self.ensemble.guided_pixels,
        }


def resolve(bundle: Bundle, setup: Setup) -> Resolved:
    """Find the calibration that holds for a wish, and check that it holds for the bundle.

    Raises
    ------
    BundleError
        If there is none.
    SetupError
        If a value is out of range, or two wishes contradict each other.
    """
    preset, calibration = _pick(bundle, setup)
    bundle.check(preset)
    where = bundle.path / CALIBRATION
    if setup.w is not None:
        calibration = calibration.with_w(setup.w, where)
    try:
        rule = MapRule(setup.anomaly_map or calibration.anomaly_map, setup.sub_map, setup.t_e_ratio)
    except ValueError as error:
        raise SetupError(str(error)) from error
    if rule != MapRule(calibration.anomaly_map):
        calibration = calibration.with_another_map()
    found = calibration.early_stop
    if setup.early_stop and not found:
        raise BundleError(
            f"{where} holds no early stop for preset {preset} at w = {calibration.w:g} and with "
            "this map: none was found worth it; leave it out"
        )
    stops = found is not None and (found.safe if setup.early_stop is None else setup.early_stop)
    if setup.Q is not None and not 0 <= setup.Q < math.inf:
        raise SetupError(f"the threshold must be a finite number from 0, not {setup.Q}")
    c = calibration.conditions
    return Resolved(
        preset,
        calibration.stopping() if stops else calibration,
        Process(bundle.manifest.schedule, c.L, c.stride, c.clip, c.encoding, c.spacing),
        found.rule if stops and found else None,
        rule,
        setup.Q,
        calibration.ensemble(bundle.manifest.grid.pixel_mm),
    )


def _pick(bundle: Bundle, setup: Setup) -> tuple[str, Calibration]:
    """The named calibration, or the default one if it fits, or the only other one that does."""
    held = bundle.calibrations
    if not held:
        raise BundleError(f"{bundle.path} is not calibrated: run anofpdm-calibrate on it")
    if setup.preset is not None and setup.preset not in held:
        raise BundleError(
            f"{bundle.path} has no preset {setup.preset!r}: it has {', '.join(held)}; "
            "anofpdm-calibrate adds others"
        )
    if setup.preset is not None:
        names = [setup.preset]
    else:
        names = sorted(held, key=lambda name: name != bundle.default)
        usual = held[bundle.default].conditions
        # Other timesteps mean neither another encoding nor another precision.
        setup = replace(setup, encoding=setup.encoding or usual.encoding,
                        precision=setup.precision or usual.precision)  # fmt: skip
    fitting = [name for name in names if _fits(held[name].conditions, setup)]
    if setup.preset is None:
        # The default one, or what it is in another precision.
        alike = replace(usual, precision=setup.precision or usual.precision)
        twins = [name for name in fitting if held[name].conditions == alike]
        fitting = [bundle.default] if bundle.default in fitting else twins or fitting
    if len(fitting) == 1:
        return fitting[0], held[fitting[0]]
    if fitting:
        raise BundleError(
            f"{bundle.path} has several calibrations for that: name one of {', '.join(fitting)} "
            "as preset"
        )
    wanted = ", ".join(
        f"{name} {value}" for name in _PICKS if (value := getattr(setup, name)) is not None
    )
    known = "; ".join(f"{name}: {held[name].conditions}" for name in names)
    raise BundleError(
        f"{bundle.path} has no calibration for {wanted} ({known}): choose one of these, or "
        "run anofpdm-calibrate for it"
    )


def _fits(conditions: Conditions, setup: Setup) -> bool:
    wishes = ((getattr(setup, name), getattr(conditions, name)) for name in _PICKS)
    return all(wish is None or wish == held for wish, held in wishes)
