"""Who is compared in :mod:`side_by_side`: the reference implementation's loop, and our presets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from counterpart import Counted, Stored, evaluations_a_slice, forward_process, select
from numpy.typing import NDArray
from paper import as_in_the_paper
from side_memory import THEIRS

from anofpdm.runtime.backends.base import Backend, Recipe
from anofpdm.runtime.bundle.bundle import Bundle
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.method.noise import slice_noise
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.train.checkpoint import load_checkpoint

Float32 = NDArray[np.float32]
CHECKPOINT = Path(__file__).with_name("checkpoints") / "anofpdm-flair-light.pt"
REFERENCE_L = 600


@dataclass(frozen=True)
class FoundSlice:
    """``t_e``: (C,); ``H``: (size, size) float32; ``mask``: (size, size) bool."""

    t_e: NDArray[np.int64]
    H: Float32
    mask: NDArray[np.bool_]


class Contender(Protocol):
    """Something that segments slices.

    ``visited``: (n,) the timesteps; ``evaluations``: of the network, a slice and one label each.
    """

    name: str
    w: float
    visited: NDArray[np.int64]
    evaluations: int

    def run(self, x0: Float32) -> Iterator[FoundSlice]:
        """Segment slices (N, C, size, size), in order."""
        ...

    def steps(self, x0: Float32, count: int) -> int:
        """Take slices through ``count`` timesteps, for what that costs; how many evaluations that
        was, a slice and one label each."""
        ...


class Ours:
    """A preset of a bundle; every slice goes to the end, alone, and is cut as in the paper."""

    def __init__(self, name: str, bundle: Bundle, backend: Backend, setup: Options) -> None:
        self.name, self._backend = name, backend
        self._segmenter = Segmenter(as_in_the_paper(bundle), backend, options=options)
        used = self._segmenter.plan
        self.w, self.visited = used.calibration.w, used.process.timesteps
        self.evaluations = 2 * len(self.visited)
        process = replace(used.process, stride=1, spacing="even")
        self._recipe = Recipe(process, self.w, bundle.manifest.scored_channels, used.rule)

    def run(self, x0: Float32) -> Iterator[FoundSlice]:
        """See :class:`Contender`."""
        stream = self._segmenter.segment_slices(Slice(i, x) for i, x in enumerate(x0))
        for result in sorted(stream, key=lambda one: one.key):
            yield FoundSlice(result.t_e, result.H, result.mask)

    def steps(self, x0: Float32, count: int) -> int:
        """See :class:`Contender`."""
        recipe = replace(self._recipe, process=replace(self._recipe.process, L=count))
        for _ in self._backend.run(recipe, (Slice(i, x) for i, x in enumerate(x0))):
            pass
        return 2 * count


class Theirs:
    """The reference implementation's loop; ``batch``: how many slices at a time."""

    name = THEIRS

    def __init__(self, bundle: Bundle, batch: int) -> None:
        exact = bundle.calibrations["exact"]
        self._unet = load_checkpoint(CHECKPOINT).network().eval()
        self._batch, self.w, self._a, self._b = batch, exact.w, exact.a, exact.b
        # Its M_t is smaller by this factor, but for clipping.
        self._M_max = np.array(exact.M_max) * (self.w / (1 + self.w)) ** 2
        self.visited = np.arange(1, REFERENCE_L + 1)
        self.evaluations = evaluations_a_slice(REFERENCE_L)

    def run(self, x0: Float32) -> Iterator[FoundSlice]:
        """See :class:`Contender`."""
        for first in range(0, len(x0), self._batch):
            clean = x0[first : first + self._batch]
            stored = self._stored(clean, REFERENCE_L, first)
            found = select(stored, torch.from_numpy(clean), self._M_max, self._a, self._b)
            for t_e, H, mask in zip(found.t_e, found.H, found.masks, strict=True):
                yield FoundSlice(t_e, H.mean(axis=0), mask)

    def steps(self, x0: Float32, count: int) -> int:
        """See :class:`Contender`."""
        for first in range(0, len(x0), self._batch):
            self._stored(x0[first : first + self._batch], count, first)
        return evaluations_a_slice(count)

    def _stored(self, x0: Float32, L: int, first: int) -> Stored:
        noise = np.stack([slice_noise(0, first + i, 1, x.shape) for i, x in enumerate(x0)])
        network = Counted(self._unet)
        both = torch.from_numpy(x0), torch.from_numpy(noise)
        stored = forward_process(network, *both, L, self.w)
        assert network.evaluations == evaluations_a_slice(L)
        return stored


def t_e_agreement(
    found: Sequence[FoundSlice], exact: Sequence[FoundSlice], visited: NDArray[np.int64]
) -> float:
    """Share of slices (times modalities) whose t_e is the exact one, within one visited timestep.

    ``visited``: (n,) where ``found`` comes from, ascending; t_e of ``exact`` counts as the nearest.
    """
    kept = []
    for got, want in zip(found, exact, strict=True):
        nearest = np.abs(visited[:, None] - want.t_e).argmin(axis=0)
        kept.append(np.abs(np.searchsorted(visited, got.t_e) - nearest) <= 1)
    return float(np.mean(kept))
