"""The bundle: what training leaves and the runtime lives on. A folder with

``manifest.json``
    what the network expects and is, and the SHA-256 of every other file;
``unet.onnx``
    ``x_t`` (B, C, H, W) float32 and ``t`` (B,) int64, 0-based -> ``eps_healthy``, ``eps_null``;
``calibration.json``
    w, M_max, the thresholds of the verdict, and the conditions they hold for.

Nothing in it is unpickled or executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import BundleError
from .files import sha256, whole_file
from .grid import Grid
from .schedule import Schedule

SCHEMA_VERSION = 1
MANIFEST, NETWORK, CALIBRATION = "manifest.json", "unet.onnx", "calibration.json"
DEFAULT = Path(__file__).with_name("default.anofpdm")


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    ``modalities``: channel names in order; ``scored``: those that count for the anomaly map;
    ``clip``: whether predictions are clipped to [-1, 1]; ``precision``: ``fp32`` or ``fp16``;
    ``L``: how far the forward process goes; ``files``: SHA-256 by name.
    """

    name: str
    modalities: tuple[str, ...]
    scored: tuple[str, ...]
    grid: Grid
    schedule: Schedule
    L: int
    clip: bool
    precision: str
    files: Mapping[str, str]
    architecture: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    model_card: str = ""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not self.modalities or not set(self.scored) <= set(self.modalities) or not self.scored:
            raise ValueError("scored modalities must be some of the modalities")
        if not 1 <= self.L <= self.schedule.T:
            raise ValueError(f"L must lie in 1..{self.schedule.T}, not {self.L}")
        if self.precision not in ("fp32", "fp16"):
            raise ValueError(f"precision must be fp32 or fp16, not {self.precision!r}")

    @property
    def scored_channels(self) -> tuple[int, ...]:
        """Positions of the scored modalities."""
        return tuple(self.modalities.index(name) for name in self.scored)


@dataclass(frozen=True)
class Conditions:
    """What a calibration holds for; thresholds mean nothing under any other.

    ``inputs_sha256``: fingerprint of the modalities, the scored ones, the grid and the schedule.
    """

    encoding: str
    L: int
    stride: int
    precision: str
    clip: bool
    network_sha256: str
    inputs_sha256: str

    def __post_init__(self) -> None:
        if not isinstance(self.stride, int) or self.stride < 1:
            raise ValueError(f"stride must be a whole number from 1, not {self.stride!r}")


@dataclass(frozen=True)
class Calibration:
    """Guidance strength and thresholds (paper, sections 4.2 and 4.3).

    ``verdict``: what decides that a slice is unhealthy: ``cosine`` (eq. 18) at most ``Cos_w``, or
    ``map``: the 99 % quantile of its anomaly map at least ``H_99``; ``M_max``: per scored modality;
    ``a``, ``b``: the quantiles of Algorithm 1; ``candidates``: accuracies and thresholds of every w
    and L that was tried; ``slices``: what they were chosen on.
    """

    w: float
    Cos_w: float
    H_99: float
    M_max: tuple[float, ...]
    conditions: Conditions
    verdict: str = "cosine"
    a: float = 0.90
    b: float = 0.98
    candidates: tuple[Mapping[str, float], ...] = ()
    slices: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in ("cosine", "map"):
            raise ValueError(f"verdict must be cosine or map, not {self.verdict!r}")
        numbers = (self.w, self.Cos_w, self.H_99, *self.M_max)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError("w, Cos_w, H_99 and M_max must be finite")
        if not self.M_max or min(self.M_max) <= 0 or not 0 <= self.a <= self.b <= 1:
            raise ValueError("a calibration needs M_max > 0 and 0 <= a <= b <= 1")


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and found intact. ``calibration`` is None before calibrating."""

    path: Path
    manifest: Manifest
    calibration: Calibration | None

    @property
    def network(self) -> Path:
        """The ONNX file."""
        return self.path / NETWORK

    def conditions(self, stride: int, L: int | None = None) -> Conditions:
        """The conditions under which this bundle runs."""
        m = self.manifest
        inputs = [m.modalities, m.scored, asdict(m.grid), asdict(m.schedule)]
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        return Conditions("ddim", L or m.L, stride, m.precision, m.clip, m.files[NETWORK], digest)

    def calibrated(self) -> Calibration:
        """The calibration, found to hold for this bundle.

        Raises
        ------
        BundleError
            If there is none, or it was made under other conditions.
        """
        if self.calibration is None:
            raise BundleError(f"{self.path} is not calibrated: run anofpdm-calibrate on it")
        held = asdict(self.calibration.conditions)
        wanted = asdict(self.conditions(self.calibration.conditions.stride))
        for name, value in wanted.items():
            if held[name] != value:
                raise BundleError(
                    f"{self.path / CALIBRATION} was made with {name} {held[name]}, the bundle has "
                    f"{value}: run anofpdm-calibrate again"
                )
        if len(self.calibration.M_max) != len(self.manifest.scored):
            raise BundleError(
                f"{self.path / CALIBRATION} is for {len(self.calibration.M_max)} modalities, the "
                f"bundle scores {len(self.manifest.scored)}: run anofpdm-calibrate again"
            )
        return self.calibration


def open_bundle(path: Path) -> Bundle:
    """Read a bundle and check it.

    Raises
    ------
    BundleError
        If it is missing, incomplete, altered, or of a newer schema.
    """
    if not path.exists():
        raise BundleError(f"bundle {path} does not exist")
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}; run anofpdm-export")
    content = _read(path / MANIFEST)
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has bundle schema {version}, this version of anofpdm reads "
            f"{SCHEMA_VERSION}: update anofpdm or export again"
        )
    try:
        for name in ("modalities", "scored"):
            content[name] = tuple(content[name])
        content["grid"] = Grid(**content["grid"])
        content["schedule"] = Schedule(**content["schedule"])
        manifest = Manifest(**content)
        hashes = {str(name): str(value) for name, value in manifest.files.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST} is damaged ({error}): export it again") from error
    if NETWORK not in hashes:
        raise BundleError(f"{path / MANIFEST} does not list {NETWORK}: export it again")
    for name, expected in hashes.items():
        if Path(name).name != name or not (path / name).is_file():
            raise BundleError(f"{path} lacks {name}: export or calibrate it again")
        if sha256(path / name) != expected:
            raise BundleError(f"{path / name} was altered (SHA-256): restore it or export again")
    calibration = None
    if CALIBRATION in hashes:
        calibration = _parse_calibration(path / CALIBRATION)
    return Bundle(path, manifest, calibration)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest of the bundle at ``path``."""
    with whole_file(path / MANIFEST) as beside:
        beside.write_text(_as_json(manifest), encoding="utf-8")


def write_calibration(bundle: Bundle, calibration: Calibration) -> None:
    """Put a calibration into a bundle; both files change together.

    Raises
    ------
    OutputError
        If the bundle cannot be written to; then nothing has changed.
    """
    path = bundle.path
    with whole_file(path / MANIFEST) as manifest_beside, whole_file(path / CALIBRATION) as beside:
        beside.write_text(_as_json(calibration), encoding="utf-8")
        files = {**bundle.manifest.files, CALIBRATION: sha256(beside)}
        manifest = replace(bundle.manifest, L=calibration.conditions.L, files=files)
        manifest_beside.write_text(_as_json(manifest), encoding="utf-8")


def _as_json(content: Manifest | Calibration) -> str:
    return json.dumps(asdict(content), indent=1, allow_nan=False) + "\n"


def _parse_calibration(path: Path) -> Calibration:
    content = _read(path)
    try:
        content["conditions"] = Conditions(**content["conditions"])
        content["M_max"] = tuple(float(value) for value in content["M_max"])
        content["candidates"] = tuple(content["candidates"])
        for name in ("w", "Cos_w", "H_99"):
            content[name] = float(content[name])
        return Calibration(**content)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is damaged ({error}): run anofpdm-calibrate again") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} is damaged: it does not hold an object")
    return content
