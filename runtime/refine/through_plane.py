"""What the slices beside a slice say of it (not in the paper).

A lesion reaches through slices, the errors of the network do less so. Anomaly maps and what
verdicts go by may therefore be averaged over the slices of a volume that lie near each other, and
every second slice be shown to the network mirrored, left for right, so that the average is one over
both views as well: test-time augmentation that costs no evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..method.process import Slice
from .guided_filter import guided_filter, pixels
from .masks import smooth

T = TypeVar("T")
WIDEST_MM = 100.0
# Headers hold spacings to four digits or so: 4.9999 mm are 5.
_ROUNDING = 1e-3


def reach(width_mm: float, spacing_mm: float) -> int:
    """How many levels away a neighbour may be: those count that are nearer than ``width_mm``.

    Parameters
    ----------
    width_mm : of the average, 0 for none
    spacing_mm : from one level to the next, 0 where that is not known, which means no neighbours
    """
    if width_mm <= 0 or spacing_mm <= 0:
        return 0
    return max(0, math.ceil(width_mm / spacing_mm - _ROUNDING) - 1)


def weights(distance_mm: NDArray[np.float64], width_mm: float) -> NDArray[np.float64]:
    """What slices at these distances count: a Gaussian whose full width at half maximum is
    ``width_mm``, 1 at 0 mm."""
    return np.asarray(np.exp2(-np.square(2 * distance_mm / width_mm)), np.float64)


def shown(item: Slice, mirrored: bool) -> Slice:
    """The slice as the network sees it: with ``mirrored``, those at odd levels left for right."""
    if not turned(item, mirrored):
        return item
    return replace(item, x0=np.ascontiguousarray(item.x0[:, ::-1]))


def turned(item: Slice, mirrored: bool) -> bool:
    """Whether the network sees this slice left for right."""
    return mirrored and item.place.level % 2 == 1


@dataclass
class _Volume(Generic[T]):
    """Levels: ``announced``, ``done``, ``given``; ``found`` on those that may still be asked for;
    ``waiting``: those that are done and not given."""

    announced: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)
    given: set[int] = field(default_factory=set)
    found: dict[int, T] = field(default_factory=dict)
    waiting: dict[int, Slice] = field(default_factory=dict)


class Gathering(Generic[T]):
    """Holds back what was found on a slice until its neighbours are done, too.

    A neighbour that was not announced may still come for as long as slices of its volume do; so the
    outermost slices, and those beside a gap, are held until the volume ends. Slices of one volume
    come together, each level once, in any order. What was found on a slice is dropped when all who
    may ask for it have been given theirs.

    ``width_mm``: see :func:`reach`.
    """

    def __init__(self, width_mm: float) -> None:
        self._width_mm = width_mm
        self._volumes: dict[int, _Volume[T]] = {}
        self._open: int | None = None

    def announced(self, slices: Iterable[Slice | None]) -> Iterator[Slice | None]:
        """The same slices, noted as they are taken.

        Raises
        ------
        ValueError
            If a level comes twice in a volume.
        """
        for item in slices:
            if item is not None:
                volume = self._volumes.setdefault(item.volume, _Volume())
                level = item.place.level
                if level in volume.announced:
                    raise ValueError(f"level {level} comes twice in volume {item.volume}")
                volume.announced.add(level)
                self._open = item.volume
            yield item
        self._open = None

    def add(self, item: Slice, found: T) -> Iterator[tuple[Slice, Sequence[tuple[float, T]]]]:
        """Note what was found on a slice.

        Yields
        ------
        Slices all of whose neighbours are done, each once: with (weight, found) of the slice itself
        first and then of its neighbours, from the feet up.
        """
        volume, level = self._volumes[item.volume], item.place.level
        volume.done.add(level)
        volume.found[level], volume.waiting[level] = found, item
        yield from self._given(item.volume, [*self._beside(item), level])
        yield from self.ready()

    def ready(self) -> Iterator[tuple[Slice, Sequence[tuple[float, T]]]]:
        """As :meth:`add`: those of volumes that have ended, who wait for nothing any more."""
        for number in [one for one in self._volumes if one != self._open]:
            volume = self._volumes[number]
            yield from self._given(number, list(volume.waiting))
            if len(volume.given) == len(volume.announced):
                del self._volumes[number]

    def _given(
        self, number: int, levels: Sequence[int]
    ) -> Iterator[tuple[Slice, Sequence[tuple[float, T]]]]:
        """Of these levels, those that wait for nothing."""
        volume = self._volumes[number]
        ended = number != self._open
        for level in sorted(levels):
            item = volume.waiting.get(level)
            if item is None:
                continue
            beside = self._beside(item)
            expected = [one for one in beside if one in volume.announced or not ended]
            if volume.done.issuperset(expected):
                del volume.waiting[level]
                volume.given.add(level)
                around = self._weighted(item, volume.found, expected)
                for one in (level, *expected):  # who is nobody's neighbour any more
                    if volume.given.issuperset(self._beside(item, one)) and one in volume.given:
                        del volume.found[one]
                yield item, around

    def _beside(self, item: Slice, level: int | None = None) -> list[int]:
        """The levels beside that of a slice, or beside another one of its volume."""
        middle = item.place.level if level is None else level
        far = reach(self._width_mm, item.place.spacing_mm)
        return [one for one in range(max(0, middle - far), middle + far + 1) if one != middle]

    def _weighted(
        self, item: Slice, found: dict[int, T], beside: Sequence[int]
    ) -> list[tuple[float, T]]:
        place = item.place
        itself = [(1.0, found[place.level])]
        if not beside:
            return itself
        distances = (np.array(beside, np.float64) - place.level) * place.spacing_mm
        counts = weights(distances, self._width_mm)
        return itself + [(float(w), found[one]) for w, one in zip(counts, beside, strict=True)]


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
    :mod:`anofpdm.runtime.refine.through_plane`; ``guided_pixels``: radius of the filter that fits maps to the
    edges of their slices, 0 for none, see :mod:`anofpdm.runtime.refine.guided_filter`.
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
