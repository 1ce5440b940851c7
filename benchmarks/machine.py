"""The machine that figures were measured on; nothing that names it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from anofpdm.runtime.backends.cpu.onnxruntime import load_onnxruntime


def machine(*packages: str) -> dict[str, object]:
    """Processor, cores, load by others when asked, and versions of Python and of those of these
    packages that are installed."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "other_load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "onnxruntime": load_onnxruntime().__version__,
        **{name: found for name in ("numpy", *packages) if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
