"""Several ways to run the same network on the CPU, and which of them is fastest here.

A batch can be shared among the cores in two ways: all of them work on one layer after the other, or
each takes a part of the slices through the whole network. Which is faster depends on the network,
the batch and the machine, so it is measured, on the batches that come anyway. No result may depend
on what was found: a way that does not give the first one's numbers, bit by bit, is not taken again.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Predict = Callable[[Float32, Int64], tuple[Float32, Float32]]
# How often each way is tried on a batch size: the first time has to find memory, too.
_TRIALS = 4


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class InParts:
    """A batch cut into ``parts``, a thread each; ``predict`` must bear many threads at once."""

    def __init__(self, predict: Predict, parts: int) -> None:
        self._predict, self._parts = predict, parts
        self._pool = ThreadPoolExecutor(parts, thread_name_prefix="anofpdm-part")

    def __call__(self, x_t: Float32, t: Int64) -> tuple[Float32, Float32]:
        """As ``predict``."""
        cuts = [len(x_t) * i // self._parts for i in range(self._parts + 1)]
        pieces = [slice(a, b) for a, b in itertools.pairwise(cuts) if a < b]
        done = self._pool.map(lambda piece: self._predict(x_t[piece], t[piece]), pieces)
        eps_healthy, eps_null = zip(*done, strict=True)
        return np.concatenate(eps_healthy), np.concatenate(eps_null)


@dataclass
class _Trials:
    """Of one batch size: seconds by way, and the way that won."""

    seconds: dict[str, list[float]]
    best: str = ""


@dataclass
class Fastest:
    """The fastest of ``ways``, found for each batch size in its first few batches.

    ``ways``: by name, each made when it is first used: a batch of one slice needs the first only.
    ``clock``: seconds.
    """

    ways: Mapping[str, Callable[[], Predict]]
    clock: Callable[[], float] = time.perf_counter
    _made: dict[str, Predict] = field(default_factory=dict, init=False)
    _trials: dict[int, _Trials] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __call__(self, x_t: Float32, t: Int64) -> tuple[Float32, Float32]:
        """As the first of the ways."""
        name, tried = self._choose(len(x_t))
        predict = self._way(name)
        began = self.clock()
        eps = predict(x_t, t)
        seconds = self.clock() - began
        first = next(iter(self.ways))
        if name != first and not tried:
            eps_first = self._way(first)(x_t, t)
            if not all(map(np.array_equal, eps, eps_first)):
                seconds, eps = math.inf, eps_first
        self._learn(len(x_t), name, seconds)
        return eps

    def best(self, batch: int) -> str:
        """The way that is taken for batches of this size; empty while it is not known."""
        found = self._trials.get(batch)
        return found.best if found else ""

    def _choose(self, batch: int) -> tuple[str, bool]:
        """Which way to take, and whether it was taken for this batch size before."""
        if batch == 1 or len(self.ways) == 1:
            return next(iter(self.ways)), True
        with self._lock:
            trials = self._trials.setdefault(batch, _Trials({name: [] for name in self.ways}))
            if trials.best:
                return trials.best, True
            fit = [name for name, found in trials.seconds.items() if math.inf not in found]
            name = min(fit, key=lambda name: len(trials.seconds[name]))
            return name, bool(trials.seconds[name])

    def _way(self, name: str) -> Predict:
        with self._lock:
            if name not in self._made:
                self._made[name] = self.ways[name]()
            return self._made[name]

    def _learn(self, batch: int, name: str, seconds: float) -> None:
        with self._lock:
            trials = self._trials.get(batch)
            if trials is None or trials.best:
                return
            trials.seconds[name].append(seconds)
            fit = {name: one for name, one in trials.seconds.items() if math.inf not in one}
            if all(len(found) >= _TRIALS for found in fit.values()):
                trials.best = min(fit, key=lambda name: min(fit[name]))
