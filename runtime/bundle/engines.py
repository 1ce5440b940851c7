"""TensorRT engines of a bundle: which one fits a GPU, and how they are kept. Needs no GPU itself.

An engine is built from ``unet_fp16.onnx`` on the GPU that it is for, by one version of TensorRT,
and holds for these only. Its file lies in the bundle's ``engines/``; the manifest has its record.
"""

import hashlib
import importlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import (
    QUOTED,
    BundleError,
    MissingExtraError,
    OptionsError,
    one_line,
)
from .bundle import MANIFEST, NETWORK_FP16, Bundle

ENGINES = "engines"
# Per flavour: its extra, and the oldest version whose interface is the one that is used here.
FLAVOURS = {"tensorrt": ("gpu", (10, 12)), "tensorrt_rtx": ("rtx", (1, 7))}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Engine:
    """The record of an engine."""

    gpu: str  # its name as the driver gives it
    compute_capability: str  # like 9.0
    flavour: str  # tensorrt or tensorrt_rtx
    version: str  # of the flavour
    network_sha256: str  # of the ONNX file that it was built from
    slots: tuple[int, ...]  # batch sizes, ascending, an optimization profile each
    precision: str = "fp16"  # what it computes in
    parity: Mapping[str, float] = field(default_factory=dict)  # distance from the FP32 network
    provenance: Mapping[str, Any] = field(default_factory=dict)  # driver, seconds to build, ...
    sha256: str = ""  # of the file; write_engine fills it in

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+\.\d+", self.compute_capability):
            raise ValueError(f"compute_capability {self.compute_capability!r} is not like 9.0")
        if self.flavour not in FLAVOURS or self.precision != "fp16":
            raise ValueError(f"{self.flavour!r} in {self.precision!r} is unknown")
        if not self.gpu or not self.version or not _SHA256.fullmatch(self.network_sha256):
            raise ValueError("an engine needs its GPU, TensorRT's version and the ONNX file's hash")
        numbers = all(isinstance(value, float | int) for value in self.parity.values())
        if not numbers or not isinstance(self.provenance, Mapping):
            raise ValueError("parity must hold numbers by name, provenance what is known by name")
        check_slots(self.slots)

    @property
    def file_name(self) -> str:
        """Like ``nvidia-h200_sm90_tensorrt_rtx-1.7.1.116_fp16_0123456789ab.engine``."""
        sm = self.compute_capability.replace(".", "")
        builder = f"{self.flavour}-{_slug(self.version)}"
        network = self.network_sha256[:12]
        return f"{_slug(self.gpu)}_sm{sm}_{builder}_{self.precision}_{network}.engine"


def check_slots(slots: tuple[int, ...]) -> None:
    """Raise ValueError unless these are ascending batch sizes."""
    whole = all(isinstance(count, int) and count >= 1 for count in slots)
    if not slots or not whole or sorted(set(slots)) != list(slots):
        raise ValueError(f"slots must be ascending whole numbers from 1, not {slots}")


def load_tensorrt(name: str | None = None) -> ModuleType:
    """Import TensorRT, or TensorRT-RTX where that is not there, or only the one that is named.

    It is really imported: an installation may have the bindings without the libraries.

    Raises
    ------
    MissingExtraError
        If none can be imported or what there is is too old, saying why.
    OptionsError
        If there is no TensorRT of that name.
    """
    if name is not None and name not in FLAVOURS:
        raise OptionsError(f"TensorRT {name!r} is unknown: choose one of {', '.join(FLAVOURS)}")
    reasons = []
    for flavour in [name] if name else FLAVOURS:
        _, oldest = FLAVOURS[flavour]
        try:
            module = importlib.import_module(flavour)
        except Exception as error:  # without their libraries, bindings raise anything
            reasons.append(f"{flavour} cannot be imported ({one_line(error, QUOTED)})")
            continue
        version = str(getattr(module, "__version__", "of unknown version"))
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= oldest:
            return module
        reasons.append(f"{flavour} {version} is older than {'.'.join(map(str, oldest))}")
    extras = [FLAVOURS[name][0]] if name else [extra for extra, _ in FLAVOURS.values()]
    repair = " or ".join(f"'anofpdm[{extra}]'" for extra in extras)
    raise MissingExtraError(f"{', '.join(reasons)}: run pip install {repair}")


def flavour_of(trt: ModuleType) -> str:
    """``tensorrt`` or ``tensorrt_rtx``."""
    return trt.__name__.partition(".")[0]


def fp16_network(bundle: Bundle) -> Path:
    """The ONNX file that engines are built from.

    Raises
    ------
    BundleError
        If the bundle does not have it.
    """
    if bundle.network_fp16 is None:
        raise BundleError(
            f"{bundle.path} has no {NETWORK_FP16}, which engines are built from: export it again "
            "with anofpdm-export"
        )
    return bundle.network_fp16


def rebuild(bundle: Path) -> str:
    """The repair where no engine fits, for messages."""
    return f"run anofpdm-export engine {shlex.quote(str(bundle))}"


def read_engines(bundle: Bundle) -> tuple[Engine, ...]:
    """The records of all engines of a bundle.

    Raises
    ------
    BundleError
        If one is damaged.
    """
    engines = []
    for name, content in bundle.manifest.engines.items():
        try:
            engine = Engine(**{**content, "slots": tuple(content["slots"])})
            if engine.file_name != name:
                raise ValueError(f"it belongs to {engine.file_name}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{bundle.path / MANIFEST}: the record of engine {name} is damaged ({error}): "
                "remove it, or export the bundle again"
            ) from error
        engines.append(engine)
    return tuple(engines)


def find_engine(
    bundle: Bundle, *, gpu: str, compute_capability: str, flavour: str, version: str
) -> Engine:
    """The engine for this GPU and this TensorRT; see :class:`Engine` for the arguments.

    Raises
    ------
    BundleError
        If there is none; the message lists the others, and the command that builds one.
    """
    network = bundle.manifest.files[fp16_network(bundle).name]
    wanted = {
        "network_sha256": network, "gpu": gpu, "compute_capability": compute_capability,
        "flavour": flavour, "version": version,
    }  # fmt: skip
    others = []
    for engine in read_engines(bundle):
        misfit = [name for name, value in wanted.items() if getattr(engine, name) != value]
        if not misfit:
            return engine
        others.append(f"{engine.file_name} is for {_REASONS[misfit[0]].format(**asdict(engine))}")
    listed = "; ".join(others[:2]) + (f"; and {len(others) - 2} more" if len(others) > 2 else "")
    raise BundleError(
        f"{bundle.path} has no engine for {gpu} (compute capability {compute_capability}) with "
        f"{flavour} {version}{f' ({listed})' if listed else ''}: {rebuild(bundle.path)}"
    )


_REASONS = {
    "network_sha256": "another network",
    "gpu": "{gpu}",
    "compute_capability": "compute capability {compute_capability}",
    "flavour": "{flavour} {version}",
    "version": "{flavour} {version}",
}


def read_engine(bundle: Bundle, engine: Engine) -> bytes:
    """The engine's file, to be deserialized.

    Raises
    ------
    BundleError
        If it is missing, or not what was written.
    """
    path = bundle.path / ENGINES / engine.file_name
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = "is missing" if not path.exists() else f"cannot be read ({error.strerror})"
        raise BundleError(f"{path} {reason}: {rebuild(bundle.path)}") from error
    if hashlib.sha256(data).hexdigest() != engine.sha256:
        raise BundleError(f"{path} was altered (SHA-256): {rebuild(bundle.path)}")
    return data


def _slug(text: str) -> str:
    """Lower case, safe as part of a file name everywhere: letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:64]
