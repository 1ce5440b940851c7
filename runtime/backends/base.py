"""What runs the forward process: a network, and a place where the loop runs around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..method.accumulator import Finding
from ..method.anomaly_map import MapRule
from ..method.early_stop import StopRule
from ..method.process import Process, Slice
from .scheduler import Cancelled, never

Float32 = NDArray[np.float32]
BROKEN_NETWORK = "the network gives infinite or undefined predictions: export it again"


class Denoiser(Protocol):
    """Predicts the noise in x_t with the label *healthy* and with the null label."""

    def __call__(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        """Both predictions for a batch whose samples may stand at different timesteps.

        Parameters
        ----------
        x_t : (B, C, H, W) float32
        t : (B,) int64, 1-based timesteps

        Returns
        -------
        eps_healthy, eps_null : (B, C, H, W) float32
        """
        ...


_PAPER = MapRule()
Found = Iterator[tuple[Slice, Finding]]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is found on a slice, but the slice and the network.

    ``scored``: the modalities that count, as positions; ``rule``: how the map that is cut is made;
    ``stop``: when a slice may leave before L; ``seed``: of the noise.
    """

    process: Process
    w: float
    scored: tuple[int, ...]
    rule: MapRule = _PAPER
    stop: StopRule | None = None
    seed: int = 0


class Backend(Protocol):
    """A network, and a place where the forward process runs around it.

    ``device``: what it is, for people; ``precision``: whose calibrations hold for it, ``fp32`` (for
    an FP16 engine, too: that is what it is compared with when it is built) or ``bf16``; ``notes``:
    what people may want to know, a line each; ``slots``: how many slices share the network's batch;
    ``denoiser``: the network alone, on arrays of the host.
    """

    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def slots(self) -> int: ...
    @property
    def denoiser(self) -> Denoiser: ...

    def find(
        self, recipe: Recipe, slices: Iterable[Slice | None], cancelled: Cancelled = never
    ) -> Found:
        """Take every slice through the process, and yield what was found as each is done; see
        :func:`anofpdm.runtime.backends.scheduler.run`."""
        ...

    def close(self) -> None:
        """Give the device back; a second time does nothing."""
        ...
