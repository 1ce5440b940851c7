"""The methods that :mod:`side_by_side` compares: the reference implementation's loop, presets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import click
import numpy as np
import torch
from common import CHECKPOINT, with_paper_rules
from counterpart import Counted, Network, Stored, evaluations_a_slice, forward_process, select
from numpy.typing import NDArray

from anofpdm.runtime.backends.base import Backend, Recipe
from anofpdm.runtime.backends.device import open_device
from anofpdm.runtime.bundle.bundle import Bundle
from anofpdm.runtime.bundle.options import Options, resolve
from anofpdm.runtime.errors import DeviceError, MissingExtraError
from anofpdm.runtime.method.noise import slice_noise
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.train.checkpoint import load_checkpoint

Float32 = NDArray[np.float32]
REFERENCE, REFERENCE_L = "reference implementation", 600
# The reference implementation's batch is of 100 slices; smaller ones suit a CPU's caches better.
_BATCH, _MEMORY_STEPS = 16, 30


@dataclass(frozen=True)
class SliceOutput:
    """``t_e``: (C,); ``H``: (size, size) float32; ``mask``: (size, size) bool."""

    t_e: NDArray[np.int64]
    H: Float32
    mask: NDArray[np.bool_]


class Preset:
    """A preset of a bundle by the paper's rules; every slice goes to L. ``visited``: (n,)
    timesteps; ``evaluations``: of the network, for a slice, each label counts."""

    def __init__(self, name: str, bundle: Bundle, backend: Backend, options: Options) -> None:
        self.name, self._backend = name, backend
        self._segmenter = Segmenter(with_paper_rules(bundle), backend, options=options)
        resolved = self._segmenter.plan
        self.w, self.visited = resolved.calibration.w, resolved.process.timesteps
        self.evaluations = 2 * len(self.visited)
        process = replace(resolved.process, stride=1, spacing="even")
        self._recipe = Recipe(process, self.w, bundle.manifest.scored_channels, resolved.rule)

    def run(self, x0: Float32) -> Iterator[SliceOutput]:
        """Segment slices (N, C, size, size), in order."""
        stream = self._segmenter.segment_slices(Slice(i, x) for i, x in enumerate(x0))
        for result in sorted(stream, key=lambda result: result.key):
            yield SliceOutput(result.t_e, result.H, result.mask)

    def steps(self, x0: Float32, count: int) -> int:
        """Take slices through the first ``count`` timesteps; the evaluations a slice."""
        recipe = replace(self._recipe, process=replace(self._recipe.process, L=count))
        for _ in self._backend.run(recipe, (Slice(i, x) for i, x in enumerate(x0))):
            pass
        return 2 * count

    def allocate(self, x0: Float32) -> None:
        """Take the memory of segmenting all these slices; it does not grow with the timesteps."""
        self.steps(x0, _MEMORY_STEPS)


class ReferenceLoop:
    """The reference implementation's loop, like a :class:`Preset`; ``batch``: slices at a time."""

    name = REFERENCE

    def __init__(self, bundle: Bundle, batch: int = _BATCH) -> None:
        exact = bundle.calibrations["exact"]
        self._unet = load_checkpoint(CHECKPOINT).network().eval()
        self._batch, self.w, self._a, self._b = batch, exact.w, exact.a, exact.b
        # Its M_t is smaller by this factor, but for clipping.
        self._M_max = np.array(exact.M_max) * (self.w / (1 + self.w)) ** 2
        self.visited = np.arange(1, REFERENCE_L + 1)
        self.evaluations = evaluations_a_slice(REFERENCE_L)

    def run(self, x0: Float32) -> Iterator[SliceOutput]:
        """The results of the slices, batch after batch."""
        for first in range(0, len(x0), self._batch):
            clean = x0[first : first + self._batch]
            stored = self._stored(self._unet, clean, REFERENCE_L, first)
            done = select(stored, torch.from_numpy(clean), self._M_max, self._a, self._b)
            for t_e, H, mask in zip(done.t_e, done.H, done.masks, strict=True):
                yield SliceOutput(t_e, H.mean(axis=0), mask)

    def steps(self, x0: Float32, count: int) -> int:
        """Only the first timesteps; the evaluations of the network."""
        for first in range(0, len(x0), self._batch):
            self._stored(self._unet, x0[first : first + self._batch], count, first)
        return evaluations_a_slice(count)

    def allocate(self, x0: Float32) -> None:
        """All memory of a run, for one batch: the network is called at the first timestep only."""

        def network(x_t: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return self._unet(x_t, t, label) if t[0] == 0 else 0.9 * x_t

        stored = self._stored(network, x0, REFERENCE_L, 0)
        select(stored, torch.from_numpy(x0), self._M_max, self._a, self._b)

    def _stored(self, unet: Network, x0: Float32, L: int, first: int) -> Stored:
        noise = np.stack([slice_noise(0, first + i, 1, x.shape) for i, x in enumerate(x0)])
        network = Counted(unet)
        x0, noise = torch.from_numpy(x0), torch.from_numpy(noise)
        stored = forward_process(network, x0, noise, L, self.w)
        assert network.evaluations == evaluations_a_slice(L)
        return stored


Method = Preset | ReferenceLoop


def open_methods(bundle: Bundle, threads: int, only: str | None = None) -> list[Method]:
    """The reference implementation and all presets in DDIM encoding, or ``only`` the method of this
    name; without those in bfloat16 where nothing computes in it, with a note."""
    fast = bundle.calibrations["fast"].w
    choices = {name: Options(preset=name) for name in bundle.calibrations if name != "ddpm"}
    choices |= {f"exact, w = {fast:g}": Options(preset="exact", w=fast)}
    methods: list[Method] = [ReferenceLoop(bundle)] if only in (None, REFERENCE) else []
    backends: dict[str, Backend] = {}
    for name, options in sorted(choices.items()):
        if only not in (None, name):
            continue
        precision = resolve(bundle, options).calibration.conditions.precision
        try:
            if precision not in backends:
                backends[precision] = open_device(
                    "cpu", bundle, threads=threads, precision=precision
                )
        except (DeviceError, MissingExtraError) as error:
            click.echo(f"note: {name}: {error}", err=True)
            continue
        methods.append(Preset(name, bundle, backends[precision], options))
    return methods


def t_e_agreement(
    outputs: Sequence[SliceOutput], exact: Sequence[SliceOutput], visited: NDArray[np.int64]
) -> float:
    """Share of slices (times modalities) whose t_e is the exact one, within one visited timestep;
    ``visited``: (n,) those of ``outputs``, ascending."""
    agree = []
    for got, want in zip(outputs, exact, strict=True):
        nearest = np.abs(visited[:, None] - want.t_e).argmin(axis=0)
        agree.append(np.abs(np.searchsorted(visited, got.t_e) - nearest) <= 1)
    return float(np.mean(agree))
