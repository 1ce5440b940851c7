"""Speed relative to a counterpart, as measured now and as recorded before."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from common import RESULTS, quartiles

RECORDED = RESULTS / "ratios.json"
_REGRESSION = 0.20  # a ratio may be this much smaller than the recorded value
Compare = Callable[..., None]  # (ours, counterpart, rounds=5), see conftest.py


def summary(ours: Sequence[float], counterpart: Sequence[float]) -> dict[str, Any]:
    """The median ratio of seconds in the same rounds, its quartiles, and the median seconds."""
    low, ratio, high = quartiles(np.array(counterpart) / np.array(ours))
    seconds = {"seconds": np.median(ours), "counterpart_seconds": np.median(counterpart)}
    return {"ratio": ratio, "quartiles": [low, high], **seconds, "rounds": len(ours)}


def regressed(ratio: float, before: float) -> bool:
    """Whether a ratio is too small beside the recorded value."""
    return ratio < (1 - _REGRESSION) * before


def recorded() -> dict[str, dict[str, Any]]:
    """The recorded summaries, by the benchmark's name."""
    return json.loads(RECORDED.read_text())["benchmarks"] if RECORDED.is_file() else {}
