"""Calibrations: guidance strength, thresholds and stopping rule, and what they hold for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .anomaly_map import ANOMALY_MAPS
from .errors import BundleError
from .forward import ENCODINGS
from .schedule import SPACINGS
from .stop import StopRule

_AGREEMENT = 0.99


@dataclass(frozen=True)
class Conditions:
    """What a calibration holds for; thresholds mean nothing under any other.

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
        return f"{self.encoding}, L {self.L}, stride {self.stride}{spaced}"


@dataclass(frozen=True)
class Candidate:
    """One (L, w) that was tried: the best threshold of either verdict and its accuracy, and the
    largest M of each scored modality."""

    L: int
    w: float
    Cos_w: float
    cosine_accuracy: float
    H_99: float
    map_accuracy: float
    M_max: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = (self.w, self.Cos_w, self.H_99, *self.M_max)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("w, Cos_w, H_99 and M_max must be finite")

    def accuracy(self, verdict: str) -> float:
        """The accuracy of this verdict, ``cosine`` or ``map``."""
        return self.cosine_accuracy if verdict == "cosine" else self.map_accuracy


@dataclass(frozen=True)
class EarlyStop:
    """A stopping rule, thresholds and M_max refitted to it, and what it was found to do.

    ``agreement``: share of slices whose t_e is that of the full sweep; ``accuracy``,
    ``full_accuracy``: of the verdict with and without; ``mean_steps`` of ``full_steps`` visited.
    """

    drop: float
    patience: int
    Cos_w: float
    H_99: float
    M_max: tuple[float, ...]
    agreement: float
    accuracy: float
    full_accuracy: float
    mean_steps: float
    full_steps: int

    def __post_init__(self) -> None:
        rule = self.rule
        shares = (self.agreement, self.accuracy, self.full_accuracy)
        numbers = (self.Cos_w, self.H_99, *self.M_max, *shares, self.mean_steps, self.full_steps)
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
class Calibration:
    """Guidance strength and thresholds (paper, sections 4.2 and 4.3).

    ``verdict``: what decides that a slice is unhealthy: ``cosine`` (eq. 18) at most ``Cos_w``, or
    ``map``: the 99 % quantile of its aggregated anomaly map at least ``H_99``; ``M_max``: per
    scored modality; ``anomaly_map``: what is cut unless asked otherwise, see
    :class:`anofpdm.runtime.anomaly_map.MapRule`; ``a``, ``b``: the quantiles of Algorithm 1;
    ``early_stop``: None where no rule saves a tenth of the steps; ``candidates``: every w and L
    that was tried; ``slices``: what they were chosen on.
    """

    w: float
    Cos_w: float
    H_99: float
    M_max: tuple[float, ...]
    conditions: Conditions
    verdict: str = "cosine"
    anomaly_map: str = "aggregate"
    a: float = 0.90
    b: float = 0.98
    early_stop: EarlyStop | None = None
    candidates: tuple[Candidate, ...] = ()
    slices: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in ("cosine", "map"):
            raise ValueError(f"verdict must be cosine or map, not {self.verdict!r}")
        if self.anomaly_map not in ANOMALY_MAPS:
            raise ValueError(f"anomaly_map must be aggregate or last, not {self.anomaly_map!r}")
        numbers = (self.w, self.Cos_w, self.H_99, *self.M_max)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("w, Cos_w, H_99 and M_max must be finite")
        if not self.M_max or min(self.M_max) <= 0 or not 0 <= self.a <= self.b <= 1:
            raise ValueError("a calibration needs M_max > 0 and 0 <= a <= b <= 1")

    def with_w(self, w: float, where: Path) -> Calibration:
        """The same for another guidance strength that was tried; without early stop.

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
        return replace(self, w=w, Cos_w=one.Cos_w, H_99=one.H_99, M_max=one.M_max, early_stop=None)

    def stopping(self) -> Calibration:
        """The same with the thresholds and M_max of its early stop."""
        found = self.early_stop
        assert found
        return replace(self, Cos_w=found.Cos_w, H_99=found.H_99, M_max=found.M_max)


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
    content["candidates"] = tuple(
        Candidate(**{**one, "M_max": tuple(one["M_max"])}) for one in content["candidates"]
    )
    if content["early_stop"] is not None:
        stop = content["early_stop"]
        content["early_stop"] = EarlyStop(**{**stop, "M_max": tuple(stop["M_max"])})
    for name in ("w", "Cos_w", "H_99"):
        content[name] = float(content[name])
    return Calibration(**content)
