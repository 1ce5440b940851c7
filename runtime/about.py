"""Which package, model and engine this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from anofpdm import __version__

from .bundle.bundle import Bundle

_ENGINES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "openvino")


def version_line(bundle: Bundle) -> str:
    """``anofpdm 0.1.0, model NAME (its fingerprint), onnxruntime 1.32.0``: a line that tells two
    installations apart."""
    engines = ", ".join(f"{name} {found}" for name in _ENGINES if (found := _version(name)))
    return (
        f"anofpdm {__version__}, model {bundle.manifest.name} (sha256 {bundle.sha256[:16]}), "
        f"{engines or 'no engine: install anofpdm[cpu] or anofpdm[gpu]'}"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
