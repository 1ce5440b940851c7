"""Where slices are taken through the forward process: on the host, or on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from .denoiser import Denoiser
from .errors import SetupError
from .method.accumulator import AnomalyDigest, Finding
from .method.anomaly_map import MapRule
from .method.early_stop import StopRule
from .method.process import Process, Slice
from .numpy_loop import HostRow
from .scheduler import Cancelled, never, run

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
        :func:`anofpdm.runtime.scheduler.run`."""
        ...

    def close(self) -> None:
        """Give the device back; a second time does nothing."""
        ...


class HostBackend:
    """NumPy, around a network that takes and gives arrays of the host.

    ``slots``: how many slices share the network's batch; ``precision``: see :class:`Backend`.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self, denoiser: Denoiser, slots: int = 4, device: str = "cpu", precision: str = "fp32"
    ) -> None:
        if slots < 1:
            raise SetupError(f"slots must be at least 1, not {slots}")
        self.denoiser, self.slots = denoiser, slots
        self.device, self.precision = device, precision

    def find(
        self, recipe: Recipe, slices: Iterable[Slice | None], cancelled: Cancelled = never
    ) -> Found:
        """See :class:`Backend`."""
        row = HostRow(
            recipe.process,
            self.denoiser,
            lambda: AnomalyDigest(recipe.w, recipe.scored, recipe.rule, recipe.stop),
            seed=recipe.seed,
            slots=self.slots,
        )
        for item, digest in run(row, slices, cancelled):
            yield item, digest.finding()

    def close(self) -> None:
        """See :class:`Backend`."""
