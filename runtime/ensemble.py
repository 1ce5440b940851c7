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

from .guided import guided_filter, pixels
from .method.process import Slice
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

    @classmethod
    def of(
        cls, neighbours_mm: float, mirrored: bool, guided_mm: float, pixel_mm: float
    ) -> Ensemble:
        """With the filter's radius in mm, on a grid with pixels of this size."""
        return cls(neighbours_mm, mirrored, pixels(guided_mm, pixel_mm))

    def turned_back(self, shown: Slice, planes: Float32) -> Float32:
        """(C, H, W) that go with a slice as it was ``shown`` to the network, the way round that it
        came."""
        return planes[:, ::-1] if turned(shown, self.mirrored) else planes

    def map_to_cut(self, around: Around) -> Float32:
        """The slice's and its neighbours' smoothed maps fitted to the slice or, without a guided
        filter, the mean of all their maps after the median filter: (H, W)."""
        if self.guided_pixels:
            maps = np.stack([view.smoothed for _, view in around])
            slices = np.stack([view.x0 for _, view in around])
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
