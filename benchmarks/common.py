"""What the benchmarks share: the machine they run on, timings, tables, bundles to compare with."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import numpy as np

from anofpdm.runtime.backends.cpu.onnxruntime import load_onnxruntime
from anofpdm.runtime.bundle.bundle import Bundle
from anofpdm.train.dataset import SliceSet, open_sliceset

PATH = click.Path(path_type=Path)
RESULTS = Path(__file__).with_name("results")
CHECKPOINT = Path(__file__).with_name("checkpoints") / "anofpdm-flair-light.pt"
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "flair.nii.gz"


def machine(*packages: str) -> dict[str, object]:
    """Processor, cores, load before the start, and the versions of Python and of packages."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "other_load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "onnxruntime": load_onnxruntime().__version__,
        **versions("numpy", *packages),
    }


def versions(*packages: str) -> dict[str, object]:
    """The versions of those packages that are installed."""
    installed: dict[str, object] = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def in_turn(work: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each piece of work in each round, after a first round that warms up."""
    seconds: list[list[float]] = [[] for _ in work]
    for number in range(rounds + 1):
        for run, times in zip(work, seconds, strict=True):
            began = time.perf_counter()
            run()
            if number:
                times.append(time.perf_counter() - began)
    return seconds


def quartiles(values: Sequence[float]) -> list[float]:
    """First quartile, median, third quartile."""
    return [float(value) for value in np.quantile(values, [0.25, 0.5, 0.75])]


def spread(values: Sequence[float]) -> str:
    """Median and quartiles, three digits."""
    low, median, high = (
        f"{v:.0f}" if v >= 100 else f"{v:.1f}" if v >= 10 else f"{v:.2f}" for v in quartiles(values)
    )
    return f"{median} [{low}, {high}]"


def run_separately(script: str, *arguments: object) -> Any:
    """Run a script in a new process; the last line that it prints, parsed as JSON."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def peak_mib() -> float:
    """Largest resident set of this process; getrusage would count from that of its parent."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) / 1024 for row in status if row.startswith("VmHWM"))


def open_split(path: Path, bundle: Bundle, split: str, every: int = 1) -> SliceSet:
    """Every k-th slice of a split that fits a bundle."""
    slices = (
        open_sliceset(path).require(bundle.manifest.modalities, bundle.manifest.grid).split(split)
    )
    return slices.take(range(0, len(slices), every))


def with_paper_rules(bundle: Bundle) -> Bundle:
    """The bundle by the paper's rules alone: no neighbours, no flips, Algorithm 1."""
    plain = {
        "threshold_rule": "algorithm-1",
        "neighbours_mm": 0.0,
        "flip_tta": False,
        "guided_mm": 0.0,
    }
    calibrations = {name: replace(c, **plain) for name, c in bundle.calibrations.items()}
    return replace(bundle, calibrations=calibrations)


def with_process(bundle: Bundle, encoding: str, L: int, stride: int) -> Bundle:
    """The bundle with one calibration, for another process in which every slice goes to L. The
    thresholds are those of the default one: they cost the same, but masks mean nothing."""
    conditions = bundle.conditions(encoding, L, stride)
    rules = {"early_stop": None, "plausibility": None}
    calibration = replace(bundle.calibrations[bundle.default], conditions=conditions, **rules)
    return replace(bundle, calibrations={"other": calibration}, default="other")
