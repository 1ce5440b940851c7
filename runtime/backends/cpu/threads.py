"""Threading: how the cores of the CPU share the network's batch.

The cores take a part of the batch each through the whole network, on one thread. That was faster
than all of them on one layer after the other at every batch of two slices or more; a single slice
is shared layer by layer. Either gives the same predictions.
"""

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Predict = Callable[[Float32, Int64], tuple[Float32, Float32]]


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class SplitBatch:
    """A batch cut into ``parts``, a thread each; ``predict`` must bear many threads at once."""

    def __init__(self, predict: Predict, parts: int) -> None:
        self._predict, self._parts = predict, parts
        self._pool = ThreadPoolExecutor(parts, thread_name_prefix="anofpdm-part")

    def __call__(self, x_t: Float32, t: Int64) -> tuple[Float32, Float32]:
        """Both predictions for a batch, a part on each thread."""
        cuts = [len(x_t) * i // self._parts for i in range(self._parts + 1)]
        pieces = [slice(a, b) for a, b in itertools.pairwise(cuts) if a < b]
        done = self._pool.map(lambda piece: self._predict(x_t[piece], t[piece]), pieces)
        eps_healthy, eps_null = zip(*done, strict=True)
        return np.concatenate(eps_healthy), np.concatenate(eps_null)


class SharedBatch:
    """A network on several cores: batches of two or more are split, one slice alone is not.

    Parameters
    ----------
    by_part : the network on one thread, for many threads at once
    whole : loads the network on all cores; called when the first batch of one slice comes
    cores : how many to use, at least 2
    """

    def __init__(self, by_part: Predict, whole: Callable[[], Predict], cores: int) -> None:
        self._split, self._load = SplitBatch(by_part, cores), whole
        self._whole: Predict | None = None
        self._lock = threading.Lock()

    def __call__(self, x_t: Float32, t: Int64) -> tuple[Float32, Float32]:
        """Both predictions for a batch."""
        if len(x_t) > 1:
            return self._split(x_t, t)
        with self._lock:
            self._whole = self._whole or self._load()
        return self._whole(x_t, t)


# Networks with larger files are not split: their layers spread well over threads.
_LARGEST_SPLIT = 64 << 20


def splits_batches(path: Path) -> bool:
    """Whether the cores each take a part of the batch through this network."""
    return path.stat().st_size <= _LARGEST_SPLIT
