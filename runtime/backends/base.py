"""What runs the forward process: a network, and a place where the loop runs around it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..method.accumulator import SliceCurves
from ..method.anomaly_map import MapRule
from ..method.early_stop import StopRule
from ..method.process import Process, Slice
from .scheduler import Cancelled, never

Float32 = NDArray[np.float32]
BROKEN_NETWORK = "the network gives infinite or undefined predictions: export it again"
_PAPER = MapRule()


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


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a slice's curves, but for the slice and the network."""

    process: Process  # encoding and visited timesteps
    w: float  # guidance strength
    scored: tuple[int, ...]  # positions of the modalities that count
    rule: MapRule = _PAPER  # how the anomaly map is made
    stop: StopRule | None = None  # when a slice may stop before L
    seed: int = 0  # of the noise


class Backend(Protocol):
    """A network, and a place where the forward process runs around it."""

    @property
    def device(self) -> str:
        """What it runs on, in words."""
        ...

    @property
    def precision(self) -> str:
        """Whose calibrations hold: ``bf16``, or ``fp32`` (for an FP16 engine, too, which was
        compared with the FP32 network when it was built)."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user may want to know, a line each."""
        ...

    @property
    def slots(self) -> int:
        """How many slices share the network's batch."""
        ...

    @property
    def denoiser(self) -> Denoiser:
        """The network alone, on arrays of the host."""
        ...

    def run(
        self, recipe: Recipe, slices: Iterable[Slice | None], cancelled: Cancelled = never
    ) -> Iterator[tuple[Slice, SliceCurves]]:
        """Take every slice through the process, and yield each with its curves when it is done; see
        :func:`anofpdm.runtime.backends.scheduler.run`."""
        ...

    def close(self) -> None:
        """Give the device back; a second time does nothing."""
        ...
