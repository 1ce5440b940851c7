"""Options of a run, and the plan that a bundle's calibration makes of them."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import BundleError, OptionsError
from ..method.anomaly_map import MapRule
from ..method.early_stop import StopRule
from ..method.process import Process
from ..refine.through_plane import Refinement
from .bundle import CALIBRATION, Bundle
from .calibration import LOWERED, Calibration

PRECISIONS = ("fp32", *LOWERED)


@dataclass(frozen=True)
class Options:
    """Options that override the preset; None keeps the preset's value.

    All but the preset are for ablations; with another map than the calibration's, the cosine
    decides and slices go to L.
    """

    preset: str | None = None  # the name of a calibration
    early_stop: bool | None = None  # whether slices may stop before L, by the calibrated rule
    anomaly_map: str | None = None  # aggregate or last, see MapRule
    w: float | None = None  # guidance strength, one that was tried in the calibration
    sub_map: str = "residual"  # see MapRule
    t_e_ratio: float = 1.0  # see MapRule
    Q: float | None = None  # a fixed threshold in place of the calibration's


@dataclass(frozen=True)
class Plan:
    """Everything that decides a mask, but for the volume, the network and the seed."""

    preset: str  # the calibration's name
    calibration: Calibration  # guidance strength and thresholds, those of early stop if it is on
    process: Process  # encoding and visited timesteps
    stop: StopRule | None  # when slices may stop before L
    rule: MapRule  # how the anomaly map is made
    Q: float | None  # a fixed threshold, None for the calibration's
    refinement: Refinement  # what makes the map that is cut

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        c = self.calibration
        return {
            "preset": self.preset,
            "conditions": asdict(c.conditions),
            "early_stop": asdict(self.stop) if self.stop else None,
            "anomaly_map": asdict(self.rule),
            "threshold": self.Q,
            "w": c.w,
            "decision": c.decision,
            "Cos_w": c.Cos_w,
            "logistic": asdict(c.logistic),
            "M_max": list(c.M_max),
            "quantiles": [c.a, c.b],
            "threshold_rule": c.threshold_rule,
            "neighbours_mm": c.neighbours_mm,
            "flip_tta": c.flip_tta,
            "guided_mm": c.guided_mm,
            "guided_pixels": self.refinement.guided_pixels,
        }


def resolve(bundle: Bundle, options: Options) -> Plan:
    """Find the calibration for the options, and check that it holds for the bundle.

    Raises
    ------
    BundleError
        If there is none.
    OptionsError
        If a value is out of range.
    """
    preset, calibration = _pick(bundle, options)
    bundle.check(preset)
    where = bundle.path / CALIBRATION
    if options.w is not None:
        calibration = calibration.with_w(options.w, where)
    try:
        rule = MapRule(
            options.anomaly_map or calibration.anomaly_map, options.sub_map, options.t_e_ratio
        )
    except ValueError as error:
        raise OptionsError(str(error)) from error
    if rule != MapRule(calibration.anomaly_map):
        calibration = calibration.with_another_map()
    stop = calibration.early_stop
    if options.early_stop and not stop:
        raise BundleError(
            f"{where} holds no early stop for preset {preset} at w = {calibration.w:g} and with "
            "this map: none was found worth it; leave it out"
        )
    stops = stop is not None and (stop.safe if options.early_stop is None else options.early_stop)
    if options.Q is not None and not 0 <= options.Q < math.inf:
        raise OptionsError(f"the threshold must be a finite number from 0, not {options.Q}")
    c = calibration.conditions
    return Plan(
        preset,
        calibration.stopping() if stops else calibration,
        Process(bundle.manifest.schedule, c.L, c.stride, c.clip, c.encoding, c.spacing),
        stop.rule if stops and stop else None,
        rule,
        options.Q,
        calibration.refinement(bundle.manifest.grid.pixel_mm),
    )


def _pick(bundle: Bundle, options: Options) -> tuple[str, Calibration]:
    """The named calibration, or the default one."""
    if not bundle.calibrations:
        raise BundleError(f"{bundle.path} is not calibrated: run anofpdm-calibrate on it")
    preset = options.preset or bundle.default
    if preset not in bundle.calibrations:
        raise BundleError(
            f"{bundle.path} has no preset {preset!r}: it has {', '.join(bundle.calibrations)}; "
            "anofpdm-calibrate adds others"
        )
    return preset, bundle.calibrations[preset]
