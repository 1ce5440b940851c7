"""The bundle: what training leaves and the runtime lives on. A folder with

``manifest.json``
    what the network expects and is, and the SHA-256 of every other file;
``unet.onnx``
    ``x_t`` (B, C, H, W) float32 and ``t`` (B,) int64, 0-based -> ``eps_healthy``, ``eps_null``;
``unet_fp16.onnx``
    optional: the same computed in float16, with the same inputs and outputs: what TensorRT engines
    are built from; weights that are the same in ``unet.onnx`` may lie there alone;
``calibration.json``
    one or more calibrations by name (*presets*), and which is the default: w, M_max, the thresholds
    of the decision, the stopping rule, which slices count together and how maps are cut, and the
    conditions they hold for;
``engines/``
    what was built on a GPU, for that GPU; see :mod:`anofpdm.runtime.bundle.engines`.

Nothing in it is unpickled or executed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..method.schedule import Schedule
from ..util.files import sha256
from ..volume.grid import Grid
from .calibration import LOWERED, Calibration, Conditions, parse_calibration

SCHEMA_VERSION = 6
MANIFEST, NETWORK, CALIBRATION = "manifest.json", "unet.onnx", "calibration.json"
NETWORK_FP16 = "unet_fp16.onnx"
DEFAULT = Path(__file__).parents[1] / "default.anofpdm"


@dataclass(frozen=True)
class Manifest:
    """The description of a bundle: the network's inputs, and the fingerprints of its files."""

    name: str  # of the model
    modalities: tuple[str, ...]  # channel names in order
    scored: tuple[str, ...]  # those that count for the anomaly map
    grid: Grid  # where slices are resampled to
    schedule: Schedule  # abar_t
    L: int  # the last timestep of calibrations, unless they name another
    clip: bool  # whether predictions are clipped to [-1, 1]
    precision: str  # what unet.onnx computes in and calibrations hold for: fp32 or fp16
    files: Mapping[str, str]  # SHA-256 by name, of all files but this one and the engines
    architecture: Mapping[str, Any] = field(default_factory=dict)  # of the U-Net, by name
    provenance: Mapping[str, Any] = field(default_factory=dict)  # of the weights, by name
    parity: Mapping[str, Any] = field(default_factory=dict)  # by network, distance from PyTorch
    model_card: str = ""  # Markdown
    engines: Mapping[str, Any] = field(default_factory=dict)  # by file name, see engines.Engine
    schema_version: int = SCHEMA_VERSION  # of the bundle

    def __post_init__(self) -> None:
        if not all(isinstance(name, str) for name in (*self.modalities, *self.scored)):
            raise ValueError("modalities must be names")
        if not self.modalities or not set(self.scored) <= set(self.modalities) or not self.scored:
            raise ValueError("scored modalities must be some of the modalities")
        for names in (self.modalities, self.scored):
            if len(set(names)) < len(names):
                raise ValueError(f"modalities are named twice: {', '.join(names)}")
        if not isinstance(self.L, int) or not 1 <= self.L <= self.schedule.T:
            raise ValueError(f"L must lie in 1..{self.schedule.T}, not {self.L}")
        if self.precision not in ("fp32", "fp16"):
            raise ValueError(f"precision must be fp32 or fp16, not {self.precision!r}")
        if not isinstance(self.clip, bool):
            raise ValueError(f"clip must be true or false, not {self.clip!r}")
        for name in ("files", "architecture", "provenance", "parity", "engines"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} must be an object")
        for name in ("name", "model_card"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be text")

    @property
    def scored_channels(self) -> tuple[int, ...]:
        """Positions of the scored modalities."""
        return tuple(self.modalities.index(name) for name in self.scored)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and is intact."""

    path: Path  # its folder
    manifest: Manifest
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)  # presets, by name
    default: str = ""  # the preset that is used unless another is named, "" without any

    @property
    def network(self) -> Path:
        """The ONNX file."""
        return self.path / NETWORK

    @property
    def network_fp16(self) -> Path | None:
        """The ONNX file that computes in float16, if the bundle has one."""
        return self.path / NETWORK_FP16 if NETWORK_FP16 in self.manifest.files else None

    @property
    def sha256(self) -> str:
        """Fingerprint of the networks and the calibrations, by those in the manifest."""
        files = json.dumps(dict(self.manifest.files), sort_keys=True)
        return hashlib.sha256(files.encode()).hexdigest()

    def conditions(
        self, encoding: str, L: int, stride: int, spacing: str = "even", precision: str = ""
    ) -> Conditions:
        """The conditions under which this bundle runs such a process; ``precision``: ``bf16``, or
        any other for the manifest's."""
        m = self.manifest
        inputs = [m.modalities, m.scored, asdict(m.grid), asdict(m.schedule)]
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        return Conditions(
            encoding, L, stride, spacing, precision if precision in LOWERED else m.precision,
            m.clip, m.files[NETWORK], digest,
        )  # fmt: skip

    def check(self, preset: str) -> None:
        """Check that a calibration holds for this bundle.

        Raises
        ------
        BundleError
            If it was made for another network, precision, or other inputs, or is at odds with
            itself.
        """
        calibration, where = self.calibrations[preset], self.path / CALIBRATION
        made_for = calibration.conditions
        wanted = self.conditions(
            made_for.encoding, made_for.L, made_for.stride, made_for.spacing, made_for.precision
        )
        if made_for.inputs_sha256 != wanted.inputs_sha256:
            raise BundleError(
                f"{where}: preset {preset} was made for other modalities, another grid or another "
                "schedule than the bundle's: run anofpdm-calibrate again"
            )
        for name, value in asdict(wanted).items():
            if getattr(made_for, name) != value:
                raise BundleError(
                    f"{where}: preset {preset} was made with {name} {getattr(made_for, name)}, "
                    f"the bundle has {value}: run anofpdm-calibrate again"
                )
        if made_for.L > self.manifest.schedule.T:
            raise BundleError(
                f"{where}: preset {preset} goes to L = {made_for.L}, the schedule to "
                f"{self.manifest.schedule.T}: run anofpdm-calibrate again"
            )
        visited = len(self.manifest.schedule.visited(made_for.L, made_for.stride, made_for.spacing))
        if calibration.plausibility and len(calibration.plausibility.mean) != visited:
            raise BundleError(
                f"{where}: preset {preset} visits {visited} timesteps and knows "
                f"{len(calibration.plausibility.mean)}: run anofpdm-calibrate again"
            )
        stopped = calibration.early_stop.M_max if calibration.early_stop else calibration.M_max
        if {len(calibration.M_max), len(stopped)} != {len(self.manifest.scored)}:
            raise BundleError(
                f"{where}: preset {preset} is for {len(calibration.M_max)} modalities, the bundle "
                f"scores {len(self.manifest.scored)}: run anofpdm-calibrate again"
            )


def open_bundle(path: Path) -> Bundle:
    """Read a bundle and check it.

    Raises
    ------
    BundleError
        If it is missing, incomplete, altered, or of another schema.
    """
    if not path.exists():
        raise BundleError(f"bundle {path} does not exist")
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}; run anofpdm-export")
    content = _read(path / MANIFEST)
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        older = isinstance(version, int) and version < SCHEMA_VERSION
        repair = (
            "make it again with anofpdm-export and anofpdm-calibrate" if older else "update anofpdm"
        )
        raise BundleError(
            f"{path} has bundle schema {version}, this version of anofpdm reads "
            f"{SCHEMA_VERSION}: {repair}"
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
    if CALIBRATION not in hashes:
        return Bundle(path, manifest)
    return Bundle(path, manifest, *_parse_calibrations(path / CALIBRATION))


def _parse_calibrations(path: Path) -> tuple[dict[str, Calibration], str]:
    content = _read(path)
    try:
        presets = {name: parse_calibration(preset) for name, preset in content["presets"].items()}
        default = content["default"]
        if default not in presets:
            raise ValueError(f"its default {default!r} is not there")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is damaged ({error}): run anofpdm-calibrate again") from error
    return presets, default


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} is damaged: it does not hold an object")
    return content
