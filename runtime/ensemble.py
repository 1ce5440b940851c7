"""The map that is cut: what a slice and those beside it make of their anomaly maps.

Alone, it is the anomaly map after the median filter, as in the reference implementation. Where
neighbouring slices count, where some of them are shown mirrored, and where maps are fitted to the
edges of their slices (none of it in the paper), it is what all of these say together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .forward import Slice
from .guided import guided_filter
from .neighbours import turned
from .postprocess import smooth

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """What one slice brings, the way round that it came: ``H``: (C, H, W) float32, its anomaly maps
    over the scored modalities; ``x0``: (C, H, W) float32 in [-1, 1], these modalities."""

    H: Float32
    x0: Float32

    @cached_property
    def smoothed(self) -> Float32:
        """The mean of its maps after the median filter: (H, W)."""
        return smooth(self.H.mean(axis=0))


# A slice itself, first, and its neighbours, each with what it counts.
Around = Sequence[tuple[float, View]]


@dataclass(frozen=True)
class Ensemble:
    """Who counts for the map of a slice, and how.

    ``neighbours_mm``: slices that lie nearer than this, 0 for the slice alone; ``mirrored``:
    whether every second slice is shown to the network left for right, see
    :mod:`anofpdm.runtime.neighbours`; ``guided_pixels``: radius of the filter that fits maps to the
    edges of their slices, 0 for none, see :mod:`anofpdm.runtime.guided`.
    """

    neighbours_mm: float = 0.0
    mirrored: bool = False
    guided_pixels: int = 0

    def view(self, shown: Slice, H: Float32, scored: Sequence[int]) -> View:
        """What a slice brings that was ``shown`` to the network; ``H``: (C, H, W), of what was
        shown; ``scored``: the modalities that count, as positions."""
        x0 = shown.x0[list(scored)]
        if turned(shown, self.mirrored):
            H, x0 = H[:, ::-1], x0[:, ::-1]
        return View(H, x0)

    def map_to_cut(self, around: Around) -> Float32:
        """The slice's and its neighbours' smoothed maps fitted to the slice or, without a guided
        filter, the mean of all their maps after the median filter: (H, W)."""
        if self.guided_pixels:
            maps, slices = (
                np.stack([getattr(view, name) for _, view in around]) for name in ("smoothed", "x0")
            )
            return guided_filter(maps, slices, counts(around), self.guided_pixels)
        if len(around) == 1:
            return around[0][1].smoothed
        return smooth(mean_map(around).mean(axis=0))


def counts(around: Sequence[tuple[float, object]]) -> NDArray[np.float64]:
    """What each counts, 1 together: (n,)."""
    weights = np.array([weight for weight, _ in around], np.float64)
    return np.asarray(weights / weights.sum())


def mean_map(around: Around) -> Float32:
    """The anomaly maps, averaged over the slice and its neighbours: (C, H, W)."""
    own = around[0][1].H
    if len(around) == 1:
        return own
    mean = np.zeros_like(own)
    for weight, (_, view) in zip(counts(around), around, strict=True):
        mean += np.float32(weight) * view.H
    return mean
