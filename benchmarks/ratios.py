"""How many times as fast as its counterpart something is, and was when that was recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RECORDED = Path(__file__).with_name("results") / "ratios.json"
# A ratio may come out this much smaller than the recorded one.
_REGRESSION = 0.20
# (ours, theirs, rounds=5), see conftest.py.
Against = Callable[..., None]


def compared(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Seconds of the same rounds -> the median of their ratios, and quartiles."""
    ratios = np.array(theirs) / np.array(ours)
    low, ratio, high = (float(one) for one in np.quantile(ratios, [0.25, 0.5, 0.75]))
    return {
        "ratio": ratio,
        "quartiles": [low, high],
        "seconds": float(np.median(ours)),
        "counterpart_seconds": float(np.median(theirs)),
        "rounds": len(ratios),
    }


def regressed(ratio: float, recorded: float) -> bool:
    """Whether what was ``recorded`` times as fast as its counterpart no longer is."""
    return ratio < (1 - _REGRESSION) * recorded


def recorded() -> dict[str, dict[str, Any]]:
    """What was found by name, when it was recorded."""
    held: dict[str, dict[str, Any]] = {}
    if RECORDED.is_file():
        held = json.loads(RECORDED.read_text(encoding="utf-8"))["benchmarks"]
    return held


def lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line each, with what was recorded."""
    held, out = recorded(), []
    for name, one in found.items():
        low, high = one["quartiles"]
        before = f"{held[name]['ratio']:.2f}" if name in held else "none"
        out.append(f"{name:30s} {one['ratio']:8.2f} [{low:.2f}, {high:.2f}]  recorded {before}")
    return out
