"""Calibrations: guidance strength, thresholds and stopping rule, and what they hold for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..method.anomaly_map import ANOMALY_MAPS
from ..method.decision import VERDICTS, Logistic
from ..method.early_stop import StopRule
from ..method.process import ENCODINGS
from ..method.schedule import SPACINGS
from ..method.threshold import THRESHOLDS
from ..refine.guided_filter import WIDEST_RADIUS_MM
from ..refine.through_plane import WIDEST_MM, Ensemble
from ..volume.plausibility import Familiar

_AGREEMENT = 0.99
# What the FP32 network may be computed in with calibrations of its own.
LOWERED = ("bf16",)


@dataclass(frozen=True)
class Conditions:
    """What a calibration holds for; thresholds mean nothing under any other.

    ``precision``: what the network computes in: the manifest's, or one of :data:`LOWERED`;
    ``inputs_sha256``: fingerprint of the modalities, the scored ones, the grid and the schedule.
    """

    encoding: str
    L: int
    stride: int
    spacing: str
    precision: str
    clip: bool
    network_sha256: str
    inputs_sha256: str

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
    """One (L, w) that was tried: either verdict and its accuracy, and the largest M of each scored
    modality.

    ``cosine_accuracy``: of the best threshold, on the slices that it was chosen on (section 4.2);
    ``calibrated_accuracy``: on patients that were left out of the fit, None where there is but one.
    """

    L: int
    w: float
    Cos_w: float
    cosine_accuracy: float
    logistic: Logistic
    calibrated_accuracy: float | None
    M_max: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(math.isfinite(number) for number in (self.w, self.Cos_w, *self.M_max)):
            raise ValueError("w, Cos_w and M_max must be finite")

    def accuracy(self, verdict: str) -> float | None:
        """The accuracy of this verdict, ``cosine`` or ``calibrated``."""
        return self.cosine_accuracy if verdict == "cosine" else self.calibrated_accuracy


@dataclass(frozen=True)
class EarlyStop:
    """A stopping rule, thresholds and M_max refitted to it, and what it was found to do.

    ``agreement``: share of slices whose t_e is that of the full sweep; ``accuracy``,
    ``full_accuracy``: of the verdict with and without; ``mean_steps`` of ``full_steps`` visited.
    """

    drop: float
    patience: int
    Cos_w: float
    logistic: Logistic
    M_max: tuple[float, ...]
    agreement: float
    accuracy: float
    full_accuracy: float
    mean_steps: float
    full_steps: int

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
        """Whether it is used unless asked otherwise."""
        return self.agreement >= _AGREEMENT and self.accuracy >= self.full_accuracy


@dataclass(frozen=True)
class PeakReport:
    """Where M_t is largest: ``at_L``, the share of slices (times modalities) on which that is the
    last visited timestep, so that t_e is no peak; medians of t_e over either class."""

    at_L: float
    healthy_t_e: float
    unhealthy_t_e: float


@dataclass(frozen=True)
class Calibration:
    """Guidance strength and thresholds (paper, sections 4.2 and 4.3).

    ``verdict``: what decides that a slice is unhealthy: ``cosine`` (eq. 18) at most ``Cos_w``, or
    ``calibrated``: ``logistic`` gives it a probability of at least one half;
    ``M_max``: per scored modality; ``anomaly_map``: what is cut unless asked otherwise, see
    :class:`anofpdm.runtime.method.anomaly_map.MapRule`; ``a``, ``b``: the quantiles of Algorithm 1;
    ``threshold``: ``algorithm-1``, or ``half-way`` from there to Otsu's, see
    :func:`anofpdm.runtime.method.threshold.otsu`; ``neighbours_mm``: how wide the average over slices is that
    lie near each other, 0 for none; ``mirrored``: whether every second slice is shown mirrored, see
    :mod:`anofpdm.runtime.refine.through_plane`; ``guided_mm``: radius of the filter that fits maps to the
    edges of their slices, 0 for none, see :mod:`anofpdm.runtime.refine.guided_filter`; ``early_stop``: None
    where no rule saves a tenth of the steps; ``familiar``: which volumes it holds for; ``peaks``: where M_t
    peaked; ``warnings``: where the paper's rules fail on this network, a line each; ``candidates``:
    every w and L that was tried; ``slices``: what they were chosen on.
    """

    w: float
    Cos_w: float
    logistic: Logistic
    M_max: tuple[float, ...]
    conditions: Conditions
    verdict: str = "cosine"
    anomaly_map: str = "aggregate"
    a: float = 0.90
    b: float = 0.98
    threshold: str = "algorithm-1"
    neighbours_mm: float = 0.0
    mirrored: bool = False
    guided_mm: float = 0.0
    early_stop: EarlyStop | None = None
    familiar: Familiar | None = None
    peaks: PeakReport | None = None
    warnings: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    slices: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be cosine or calibrated, not {self.verdict!r}")
        if self.anomaly_map not in ANOMALY_MAPS:
            raise ValueError(f"anomaly_map must be aggregate or last, not {self.anomaly_map!r}")
        if self.threshold not in THRESHOLDS:
            raise ValueError(f"threshold must be algorithm-1 or half-way, not {self.threshold!r}")
        if not 0 <= self.neighbours_mm <= WIDEST_MM or not isinstance(self.mirrored, bool):
            raise ValueError(f"neighbours_mm must be in 0..{WIDEST_MM:g}, mirrored true or false")
        if not 0 <= self.guided_mm <= WIDEST_RADIUS_MM:
            raise ValueError(
                f"guided_mm must be in 0..{WIDEST_RADIUS_MM:g}, not {self.guided_mm!r}"
            )
        if not all(math.isfinite(number) for number in (self.w, self.Cos_w, *self.M_max)):
            raise ValueError("w, Cos_w and M_max must be finite")
        if not self.M_max or min(self.M_max) <= 0 or not 0 <= self.a <= self.b <= 1:
            raise ValueError("a calibration needs M_max > 0 and 0 <= a <= b <= 1")

    def unhealthy(self, cosine: float, log_odds: float) -> bool:
        """The verdict on a slice with this cosine, and these log odds by ``logistic``."""
        return cosine <= self.Cos_w if self.verdict == "cosine" else log_odds >= 0

    def ensemble(self, pixel_mm: float) -> Ensemble:
        """Who counts for the map that is cut, on a grid with pixels of this size."""
        return Ensemble.of(self.neighbours_mm, self.mirrored, self.guided_mm, pixel_mm)

    def with_w(self, w: float, where: Path) -> Calibration:
        """The same for another guidance strength that was tried; without early stop, and what was
        found of M_t.

        Raises
        ------
        BundleError
            If it was not tried at this L.
        """
        if w == self.w:
            return self
        tried = {one.w: one for one in self.candidates if one.L == self.conditions.L}
        if w not in tried or min(tried[w].M_max) <= 0:
            known = ", ".join(f"{known:g}" for known in sorted(tried))
            raise BundleError(
                f"{where} is not calibrated for w = {w:g}, but for {known or f'{self.w:g}'}: "
                "choose one of these, or run anofpdm-calibrate for it"
            )
        one = tried[w]
        return replace(
            self,
            w=w,
            Cos_w=one.Cos_w,
            logistic=one.logistic,
            M_max=one.M_max,
            early_stop=None,
            peaks=None,
            warnings=(),
        )

    def with_another_map(self) -> Calibration:
        """The same for another anomaly map, whose peak ``logistic`` does not know: the cosine
        decides; without early stop, which was calibrated with the other decision."""
        return replace(self, verdict="cosine", early_stop=None)

    def stopping(self) -> Calibration:
        """The same with the thresholds and M_max of its early stop."""
        found = self.early_stop
        assert found
        return replace(self, Cos_w=found.Cos_w, logistic=found.logistic, M_max=found.M_max)


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
    content["logistic"] = Logistic(**content["logistic"])
    content["warnings"] = tuple(str(line) for line in content["warnings"])
    content["candidates"] = tuple(
        Candidate(**{**one, **_thresholds(one)}) for one in content["candidates"]
    )
    if content["early_stop"] is not None:
        stop = content["early_stop"]
        content["early_stop"] = EarlyStop(**{**stop, **_thresholds(stop)})
    if content["familiar"] is not None:
        known = content["familiar"]
        curves = {name: tuple(float(v) for v in known[name]) for name in ("mean", "spread")}
        content["familiar"] = Familiar(**{**known, **curves})
    if content["peaks"] is not None:
        content["peaks"] = PeakReport(**content["peaks"])
    for name in ("w", "Cos_w"):
        content[name] = float(content[name])
    return Calibration(**content)


def _thresholds(content: Mapping[str, Any]) -> dict[str, Any]:
    return {"M_max": tuple(content["M_max"]), "logistic": Logistic(**content["logistic"])}
