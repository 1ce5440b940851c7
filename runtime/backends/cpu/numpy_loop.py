"""The loop of the forward process in NumPy: slots, and a step of all of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from ...errors import OptionsError
from ...method.accumulator import AnomalyAccumulator, SliceCurves
from ...method.noise import slice_noise
from ...method.process import Process, Slice
from ...method.step import Float32, Step, ddim_step, noised
from ..base import Denoiser, Recipe
from ..scheduler import Cancelled, never, run


class Accumulator(Protocol):
    """Takes in the steps of one slice, in order."""

    def add(self, step: Step, UGP: Float32) -> bool:
        """Take in a step and its unguided prediction, which the process needs too; returns whether
        the slice may stop before L."""
        ...


A = TypeVar("A", bound=Accumulator)


@dataclass
class _Slot(Generic[A]):
    """A slice on its way."""

    slice: Slice  # the clean one
    accumulator: A  # of its steps
    x_t: Float32 | None = None  # where it stands in DDIM encoding, None before its first step
    visited: int = 0  # timesteps
    done: bool = False  # whether it has stopped


class NumpySlots(Generic[A]):
    """Slots whose steps NumPy computes; the result of a slice is its accumulator.

    Parameters
    ----------
    process : encoding and visited timesteps
    denoiser : the network
    new_accumulator : makes the accumulator of a slice that enters
    seed : what the noise depends on, besides the slice's key
    slots : how many samples share the network's batch; does not change results
    """

    def __init__(
        self,
        process: Process,
        denoiser: Denoiser,
        new_accumulator: Callable[[], A],
        *,
        seed: int = 0,
        slots: int = 4,
    ) -> None:
        self._process, self._denoiser, self._new_accumulator = process, denoiser, new_accumulator
        self._seed, self._slots = seed, slots
        self._t = process.timesteps
        self._abar = process.schedule.abar[self._t - 1]
        self._occupied: list[_Slot[A]] = []

    @property
    def free(self) -> int:
        """How many slices may enter now."""
        return self._slots - len(self._occupied)

    @property
    def busy(self) -> bool:
        """Whether a slice is in a slot."""
        return bool(self._occupied)

    def enter(self, item: Slice) -> None:
        """Let a slice into a free slot."""
        self._occupied.append(_Slot(item, self._new_accumulator()))

    def step(self) -> None:
        """One batch of the network: a step of every slice; in DDPM encoding more, in free slots."""
        t, abar, ddim = self._t, self._abar, self._process.encoding == "ddim"
        batch = [(slot, slot.visited) for slot in self._occupied] if ddim else self._ddpm_batch()
        samples = [self._noised(s.slice, i) if s.x_t is None else s.x_t for s, i in batch]
        predictions = self._denoiser(np.stack(samples), np.array([t[i] for _, i in batch]))
        for (slot, i), x_t, eps_healthy, eps_null in zip(batch, samples, *predictions, strict=True):
            if slot.done:
                continue
            step = Step(int(t[i]), float(abar[i]), self._process.clip, slot.slice.x0, x_t,
                        eps_healthy, eps_null)  # fmt: skip
            UGP = step.UGP()
            slot.done = slot.accumulator.add(step, UGP) or i + 1 == len(t)
            slot.visited += 1
            if ddim and not slot.done:
                slot.x_t = ddim_step(x_t, UGP, abar[i], abar[i + 1])

    def finished(self) -> Iterator[tuple[Slice, A]]:
        """The slices that are done; their slots are free."""
        done = [(slot.slice, slot.accumulator) for slot in self._occupied if slot.done]
        self._occupied = [slot for slot in self._occupied if not slot.done]
        return iter(done)

    def _noised(self, item: Slice, i: int) -> Float32:
        """A slice at the i-th visited timestep, straight from the clean one (eq. 2)."""
        noise = slice_noise(self._seed, item.key, int(self._t[i]), item.x0.shape)
        return noised(item.x0, noise, self._abar[i])

    def _ddpm_batch(self) -> list[tuple[_Slot[A], int]]:
        """Steps that do not need each other: one of each slice; spare slots, when no more slices
        wait, go to further steps of the first ones. The steps of a slice come in order."""
        spare, batch = self.free, []
        for slot in self._occupied:
            extra = min(spare, len(self._t) - slot.visited - 1)
            spare -= extra
            batch += [(slot, i) for i in range(slot.visited, slot.visited + 1 + extra)]
        return batch


class NumpyBackend:
    """The NumPy loop around a network that takes and gives arrays of the host.

    Parameters
    ----------
    denoiser : the network
    slots : how many slices share its batch
    device : what it runs on, in words
    precision : whose calibrations hold, ``fp32`` or ``bf16``
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self, denoiser: Denoiser, slots: int = 4, device: str = "cpu", precision: str = "fp32"
    ) -> None:
        if slots < 1:
            raise OptionsError(f"slots must be at least 1, not {slots}")
        self.denoiser, self.slots = denoiser, slots
        self.device, self.precision = device, precision

    def run(
        self, recipe: Recipe, slices: Iterable[Slice | None], cancelled: Cancelled = never
    ) -> Iterator[tuple[Slice, SliceCurves]]:
        """Take every slice through the process, and yield each with its curves when it is done."""

        def new_accumulator() -> AnomalyAccumulator:
            return AnomalyAccumulator(recipe.w, recipe.scored, recipe.rule, recipe.stop)

        slots = NumpySlots(
            recipe.process, self.denoiser, new_accumulator, seed=recipe.seed, slots=self.slots
        )
        for item, accumulator in run(slots, slices, cancelled):
            yield item, accumulator.curves()

    def close(self) -> None:
        """Nothing to give back."""
