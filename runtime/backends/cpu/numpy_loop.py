"""The loop of the forward process in NumPy: slots, and a step of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from ...errors import SetupError
from ...method.accumulator import AnomalyDigest
from ...method.noise import slice_noise
from ...method.process import Process, Slice
from ...method.step import Float32, Step, ddim_step
from ..base import Denoiser, Found, Recipe
from ..scheduler import Cancelled, never, run


class Digest(Protocol):
    """Takes in the steps of one slice, in order."""

    def add(self, step: Step, UGP: Float32) -> bool:
        """Digest a step, and say whether the slice may leave before L.

        ``UGP`` is the step's unguided prediction, which the process needs too.
        """
        ...


D = TypeVar("D", bound=Digest)


@dataclass
class _Slot(Generic[D]):
    """A slice on its way. ``x_t``: where it stands in DDIM encoding, None before it has moved."""

    slice: Slice
    digest: D
    x_t: Float32 | None = None
    visited: int = 0
    left: bool = False


class HostRow(Generic[D]):
    """See :class:`anofpdm.runtime.backends.scheduler.Row`; what is found on a slice is its digest.

    Parameters
    ----------
    new_digest : makes the digest of a slice that enters
    seed : what the noise depends on, besides the slice's key
    slots : how many samples share the network's batch; does not change results
    """

    def __init__(
        self,
        process: Process,
        denoiser: Denoiser,
        new_digest: Callable[[], D],
        *,
        seed: int = 0,
        slots: int = 4,
    ) -> None:
        self._process, self._denoiser, self._new_digest = process, denoiser, new_digest
        self._seed, self._slots = seed, slots
        self._t = process.timesteps
        self._abar = process.schedule.abar[self._t - 1]
        self._row: list[_Slot[D]] = []

    @property
    def free(self) -> int:
        """See :class:`anofpdm.runtime.backends.scheduler.Row`."""
        return self._slots - len(self._row)

    @property
    def busy(self) -> bool:
        """See :class:`anofpdm.runtime.backends.scheduler.Row`."""
        return bool(self._row)

    def enter(self, item: Slice) -> None:
        """See :class:`anofpdm.runtime.backends.scheduler.Row`."""
        self._row.append(_Slot(item, self._new_digest()))

    def step(self) -> None:
        """See :class:`anofpdm.runtime.backends.scheduler.Row`."""
        abar, n = self._abar, len(self._t)
        independent = self._process.encoding == "ddpm"
        shares = self._shares() if independent else [(slot, slot.visited) for slot in self._row]
        samples = [self._noised(s.slice, i) if s.x_t is None else s.x_t for s, i in shares]
        x_t, t = np.stack(samples), np.array([self._t[i] for _, i in shares])
        for (slot, i), sample, eps_healthy, eps_null in zip(
            shares, samples, *self._denoiser(x_t, t), strict=True
        ):
            if slot.left:
                continue
            step = Step(
                int(self._t[i]),
                float(abar[i]),
                self._process.clip,
                slot.slice.x0,
                sample,
                eps_healthy,
                eps_null,
            )
            UGP = step.UGP()
            slot.left = slot.digest.add(step, UGP) or i + 1 == n
            slot.visited += 1
            if not slot.left and not independent:
                slot.x_t = ddim_step(sample, UGP, abar[i], abar[i + 1])

    def leave(self) -> Iterator[tuple[Slice, D]]:
        """See :class:`anofpdm.runtime.backends.scheduler.Row`."""
        done = [(slot.slice, slot.digest) for slot in self._row if slot.left]
        self._row = [slot for slot in self._row if not slot.left]
        return iter(done)

    def _noised(self, item: Slice, i: int) -> Float32:
        """A slice at the i-th visited timestep, straight from the clean one (eq. 2)."""
        noise = slice_noise(self._seed, item.key, int(self._t[i]), item.x0.shape)
        clean = np.float32(math.sqrt(self._abar[i])) * item.x0
        return clean + np.float32(math.sqrt(1 - self._abar[i])) * noise

    def _shares(self) -> list[tuple[_Slot[D], int]]:
        """Which steps of which slices make the next batch when steps do not need each other (DDPM).

        One of each slice; spare slots, when no more slices wait, go to further steps of the first
        ones. The steps of a slice come in order.
        """
        spare, shares = self.free, []
        for slot in self._row:
            extra = min(spare, len(self._t) - slot.visited - 1)
            spare -= extra
            shares += [(slot, i) for i in range(slot.visited, slot.visited + 1 + extra)]
        return shares


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
