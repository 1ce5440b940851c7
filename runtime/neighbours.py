"""What the slices beside a slice say of it (not in the paper).

A lesion reaches through slices, the errors of the network do less so. Anomaly maps, cosines and log
odds may therefore be averaged over the slices of a volume that lie near each other, and every
second slice be shown to the network mirrored, left for right, so that the average is one over both
views as well: test-time augmentation that costs no evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from .forward import Slice

T = TypeVar("T")
WIDEST_MM = 100.0


def reach(width_mm: float, spacing_mm: float) -> int:
    """How many levels away a neighbour may be: those count that are nearer than ``width_mm``.

    Parameters
    ----------
    width_mm : of the average, 0 for none
    spacing_mm : from one level to the next, 0 where that is not known, which means no neighbours
    """
    if width_mm <= 0 or spacing_mm <= 0:
        return 0
    return max(0, math.ceil(width_mm / spacing_mm - 1e-6) - 1)


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
    announced: set[int] = field(default_factory=set)
    found: dict[int, T] = field(default_factory=dict)
    waiting: dict[int, Slice] = field(default_factory=dict)


class Gathering(Generic[T]):
    """Holds back what was found on a slice until its neighbours are done, too.

    A neighbour that was not announced may still come for as long as slices of its volume do; so the
    outermost slices, and those beside a gap, are held until the volume ends. Slices of one volume
    come together, in any order.

    ``width_mm``: see :func:`reach`.
    """

    def __init__(self, width_mm: float) -> None:
        self._width_mm = width_mm
        self._volumes: dict[int, _Volume[T]] = {}
        self._open: int | None = None

    def announced(self, slices: Iterable[Slice | None]) -> Iterator[Slice | None]:
        """The same slices, noted as they are taken."""
        for item in slices:
            if item is not None:
                volume = self._volumes.setdefault(item.volume, _Volume())
                volume.announced.add(item.place.level)
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
        volume = self._volumes[item.volume]
        volume.found[item.place.level], volume.waiting[item.place.level] = found, item
        yield from self.ready()

    def ready(self) -> Iterator[tuple[Slice, Sequence[tuple[float, T]]]]:
        """As :meth:`add`: those that wait for nothing any more."""
        for number, volume in list(self._volumes.items()):
            ended = number != self._open
            for level, item in sorted(volume.waiting.items()):
                beside = self._beside(item)
                expected = [one for one in beside if one in volume.announced or not ended]
                if all(one in volume.found for one in expected):
                    del volume.waiting[level]
                    yield item, self._weighted(item, volume.found, expected)
            if ended and len(volume.found) == len(volume.announced) and not volume.waiting:
                del self._volumes[number]

    def _beside(self, item: Slice) -> list[int]:
        level, far = item.place.level, reach(self._width_mm, item.place.spacing_mm)
        return [one for one in range(max(0, level - far), level + far + 1) if one != level]

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
