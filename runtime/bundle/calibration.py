"""Calibrations: guidance strength, thresholds and stopping rule, and what they hold for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..method.anomaly_map import ANOMALY_MAPS
from ..method.decision import DECISIONS, LogisticDecision
from ..method.early_stop import StopRule
from ..method.process import ENCODINGS
from ..method.schedule import SPACINGS
from ..method.threshold import THRESHOLDS
from ..refine.guided_filter import WIDEST_RADIUS_MM
from ..refine.through_plane import WIDEST_MM, Refinement
from ..volume.plausibility import Plausibility

_AGREEMENT = 0.99
_LARGEST_W = 1e6  # beyond, guided predictions overflow in float32
# What the FP32 network may be computed in with calibrations of its own.
LOWERED = ("bf16",)


@dataclass(frozen=True)
class Conditions:
    """What a calibration holds for; thresholds mean nothing under any other."""

    encoding: str  # ddim or ddpm
    L: int  # the last timestep that may be visited
    stride: int  # decides the number of visited timesteps
    spacing: str  # of the visited timesteps: even or log-snr
    precision: str  # what the network computes in: the manifest's, or one of LOWERED
    clip: bool  # whether predictions are clipped to [-1, 1]
    network_sha256: str  # of unet.onnx
    inputs_sha256: str  # of modalities, scored modalities, grid and schedule

    def __post_init__(self) -> None:
        if not isinstance(self.stride, int) or self.stride < 1:
            raise ValueError(f"stride must be a whole number from 1, not {self.stride!r}")
        if not isinstance(self.L, int) or self.L < 1:
            raise ValueError(f"L must be a whole number from 1, not {self.L!r}")
        if self.encoding not in ENCODINGS or self.spacing not in SPACINGS:
            raise ValueError(f"encoding {self.encoding!r} with spacing {self.spacing!r} is unknown")

    def __str__(self) -> str:
        spaced = "" if self.spacing == "even" else f" {self.spacing}"
        lowered = f", {self.precision}" if self.precision in LOWERED else ""
        return f"{self.encoding}, L {self.L}, stride {self.stride}{spaced}{lowered}"


@dataclass(frozen=True)
class Candidate:
    """One (L, w) that was tried, with both image-level decisions."""

    L: int  # where the process ends
    w: float  # guidance strength
    Cos_w: float  # threshold of the cosine (section 4.2)
    cosine_accuracy: float  # on the slices that Cos_w was chosen on
    logistic: LogisticDecision  # the calibrated decision
    calibrated_accuracy: float | None  # on patients left out of the fit, None for one patient
    M_max: tuple[float, ...]  # (C,) largest M of each scored modality

    def __post_init__(self) -> None:
        if not all(math.isfinite(number) for number in (self.Cos_w, *self.M_max)):
            raise ValueError("Cos_w and M_max must be finite")
        if not abs(self.w) <= _LARGEST_W:
            raise ValueError(f"w must be at most {_LARGEST_W:g}, not {self.w!r}")

    def accuracy(self, decision: str) -> float | None:
        """The accuracy of this decision, ``cosine`` or ``calibrated``."""
        return self.cosine_accuracy if decision == "cosine" else self.calibrated_accuracy


@dataclass(frozen=True)
class EarlyStop:
    """A stopping rule, the thresholds fitted to it, and its effect on the calibration's slices."""

    drop: float  # see StopRule
    patience: int  # see StopRule, visited steps
    Cos_w: float  # refitted threshold of the cosine
    logistic: LogisticDecision  # refitted calibrated decision
    M_max: tuple[float, ...]  # (C,) largest M before slices stop
    agreement: float  # share of slices whose t_e is that of the full sweep
    accuracy: float  # of the image-level decision with early stop
    full_accuracy: float  # and without
    mean_steps: float  # visited steps a slice with early stop
    full_steps: int  # and without

    def __post_init__(self) -> None:
        rule = self.rule
        shares = (self.agreement, self.accuracy, self.full_accuracy)
        numbers = (self.Cos_w, *self.M_max, *shares, self.mean_steps, self.full_steps)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{rule} needs finite thresholds")
        if not all(0 <= share <= 1 for share in shares) or min(self.M_max, default=0) <= 0:
            raise ValueError(f"{rule} needs shares in 0..1 and M_max > 0")

    @property
    def rule(self) -> StopRule:
        """When to stop."""
        return StopRule(self.drop, self.patience)

    @property
    def safe(self) -> bool:
        """Whether it is on by default."""
        return self.agreement >= _AGREEMENT and self.accuracy >= self.full_accuracy


@dataclass(frozen=True)
class PeakReport:
    """Where M_t is largest."""

    at_L: float  # share of slices (times modalities) whose peak is the last visited timestep
    healthy_t_e: float  # median over healthy slices
    unhealthy_t_e: float  # median over unhealthy slices


@dataclass(frozen=True)
class Calibration:
    """Guidance strength, thresholds and refinement (paper, sections 4.2 and 4.3, and beyond)."""

    w: float  # guidance strength
    Cos_w: float  # unhealthy where the cosine (eq. 18) is at most this
    logistic: LogisticDecision  # unhealthy where its probability is at least one half
    M_max: tuple[float, ...]  # (C,) largest M of each scored modality (Algorithm 1)
    conditions: Conditions  # what all of this holds for
    decision: str = "cosine"  # which of the two decides: cosine or calibrated
    anomaly_map: str = "aggregate"  # the map that is cut, see MapRule
    a: float = 0.90  # smallest quantile of Algorithm 1
    b: float = 0.98  # largest quantile of Algorithm 1
    threshold_rule: str = "algorithm-1"  # or mean-with-otsu: the mean with Otsu's threshold
    neighbours_mm: float = 0.0  # width of the window of slices that maps are averaged over, 0: none
    flip_tta: bool = False  # whether every second slice is flipped for the network
    guided_mm: float = 0.0  # radius of the guided filter, 0 for none
    early_stop: EarlyStop | None = None  # None where no rule saves a tenth of the steps
    plausibility: Plausibility | None = None  # which volumes it holds for
    peaks: PeakReport | None = None  # where M_t peaks
    warnings: tuple[str, ...] = ()  # where the paper's rules fail on this network, a line each
    candidates: tuple[Candidate, ...] = ()  # every w and L that was tried
    slices: Mapping[str, Any] = field(default_factory=dict)  # what it was chosen on

    def __post_init__(self) -> None:
        if self.decision not in DECISIONS:
            raise ValueError(f"decision must be cosine or calibrated, not {self.decision!r}")
        if self.anomaly_map not in ANOMALY_MAPS:
            raise ValueError(f"anomaly_map must be aggregate or last, not {self.anomaly_map!r}")
        if self.threshold_rule not in THRESHOLDS:
            raise ValueError(
                f"threshold_rule must be one of {', '.join(THRESHOLDS)}, not "
                f"{self.threshold_rule!r}"
            )
        if not 0 <= self.neighbours_mm <= WIDEST_MM or not isinstance(self.flip_tta, bool):
            raise ValueError(f"neighbours_mm must be in 0..{WIDEST_MM:g}, flip_tta true or false")
        if not 0 <= self.guided_mm <= WIDEST_RADIUS_MM:
            raise ValueError(
                f"guided_mm must be in 0..{WIDEST_RADIUS_MM:g}, not {self.guided_mm!r}"
            )
        if not all(math.isfinite(number) for number in (self.Cos_w, *self.M_max)):
            raise ValueError("Cos_w and M_max must be finite")
        if not abs(self.w) <= _LARGEST_W:
            raise ValueError(f"w must be at most {_LARGEST_W:g}, not {self.w!r}")
        if not self.M_max or min(self.M_max) <= 0 or not 0 <= self.a <= self.b <= 1:
            raise ValueError("a calibration needs M_max > 0 and 0 <= a <= b <= 1")

    def unhealthy(self, cosine: float, log_odds: float) -> bool:
        """The decision on a slice with this cosine, and these log odds by ``logistic``."""
        return cosine <= self.Cos_w if self.decision == "cosine" else log_odds >= 0

    def refinement(self, pixel_mm: float) -> Refinement:
        """What makes the map that is cut, on a grid with pixels of this size."""
        return Refinement.of(self.neighbours_mm, self.flip_tta, self.guided_mm, pixel_mm)

    def with_w(self, w: float, where: Path) -> "Calibration":
        """The same for another guidance strength that was tried; without early stop,
        peaks and warnings.

        Raises
        ------
        BundleError
            If it was not tried at this L.
        """
        if w == self.w:
            return self
        tried = {other.w: other for other in self.candidates if other.L == self.conditions.L}
        if w not in tried or min(tried[w].M_max) <= 0:
            known = ", ".join(f"{other:g}" for other in sorted(tried))
            raise BundleError(
                f"{where} is not calibrated for w = {w:g}, but for {known or f'{self.w:g}'}: "
                "choose one of these, or run anofpdm-calibrate for it"
            )
        new = tried[w]
        return replace(self, w=w, Cos_w=new.Cos_w, logistic=new.logistic, M_max=new.M_max,
                       early_stop=None, peaks=None, warnings=())  # fmt: skip

    def with_another_map(self) -> "Calibration":
        """The same for another anomaly map, whose peak ``logistic`` does not know: the cosine
        decides; without early stop, which was calibrated with the other decision."""
        return replace(self, decision="cosine", early_stop=None)

    def stopping(self) -> "Calibration":
        """The same with the thresholds and M_max of its early stop."""
        stop = self.early_stop
        assert stop
        return replace(self, Cos_w=stop.Cos_w, logistic=stop.logistic, M_max=stop.M_max)


def parse_calibration(content: dict[str, Any]) -> Calibration:
    """Build a calibration of what JSON holds.

    Raises
    ------
    AttributeError, KeyError, TypeError, ValueError
        If it holds something else.
    """
    content = dict(content)
    content["conditions"] = Conditions(**content["conditions"])
    content["M_max"] = tuple(float(value) for value in content["M_max"])
    content["logistic"] = LogisticDecision(**content["logistic"])
    content["warnings"] = tuple(str(line) for line in content["warnings"])
    content["candidates"] = tuple(
        Candidate(**{**tried, **_thresholds(tried)}) for tried in content["candidates"]
    )
    if content["early_stop"] is not None:
        stop = content["early_stop"]
        content["early_stop"] = EarlyStop(**{**stop, **_thresholds(stop)})
    if content["plausibility"] is not None:
        limits = content["plausibility"]
        curves = {name: tuple(float(v) for v in limits[name]) for name in ("mean", "spread")}
        content["plausibility"] = Plausibility(**{**limits, **curves})
    if content["peaks"] is not None:
        content["peaks"] = PeakReport(**content["peaks"])
    for name in ("w", "Cos_w"):
        content[name] = float(content[name])
    return Calibration(**content)


def _thresholds(content: Mapping[str, Any]) -> dict[str, Any]:
    return {"M_max": tuple(content["M_max"]), "logistic": LogisticDecision(**content["logistic"])}
