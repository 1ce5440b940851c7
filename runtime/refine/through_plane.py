"""What neighbouring slices add to a slice (not in the paper).

A lesion reaches through slices, the errors of the network do less so. So anomaly maps and the
statistics of image-level decisions may be averaged over a window of slices that lie near each
other, and every second slice may be flipped, left for right, before the network sees it: then the
average is one over both views as well, which is test-time augmentation without extra evaluations.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..method.process import Slice
from .guided_filter import guided_filter, radius_pixels
from .masks import median

T = TypeVar("T")
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
# A slice itself, first, and its neighbours, each with its weight.
Window = Sequence[tuple[float, T]]
WIDEST_MM = 100.0
# Headers hold spacings to four digits or so: 4.9999 mm are 5.
_ROUNDING = 1e-3


def reach(width_mm: float, spacing_mm: float) -> int:
    """How many levels away a neighbour may be: those nearer than ``width_mm`` count.

    Parameters
    ----------
    width_mm : of the window, 0 for none
    spacing_mm : from one level to the next, 0 where that is not known, which means no neighbours
    """
    if width_mm <= 0 or spacing_mm <= 0:
        return 0
    return max(0, math.ceil(width_mm / spacing_mm - _ROUNDING) - 1)


def gaussian_weights(distance_mm: Float64, width_mm: float) -> Float64:
    """The weights of slices at these distances: a Gaussian whose full width at half maximum is
    ``width_mm``, 1 at 0 mm."""
    return np.asarray(np.exp2(-np.square(2 * distance_mm / width_mm)), np.float64)


def window_weights(window: Window[object]) -> Float64:
    """The weights of a window, scaled to 1 in all: (n,)."""
    weights = np.array([weight for weight, _ in window], np.float64)
    return np.asarray(weights / weights.sum())


@dataclass(frozen=True)
class SliceView:
    """What one slice brings to the maps of its neighbours, unflipped."""

    H: Float32  # (C, H, W) anomaly maps of the scored modalities
    x0: Float32  # (C, H, W) these modalities, in [-1, 1]

    @cached_property
    def smoothed(self) -> Float32:
        """The mean of its maps after the median filter: (H, W)."""
        return median(self.H.mean(axis=0))


def window_mean(window: Window[SliceView]) -> Float32:
    """The anomaly maps, averaged over the window: (C, H, W)."""
    center = window[0][1].H
    if len(window) == 1:
        return center
    mean = np.zeros_like(center)
    for weight, (_, view) in zip(window_weights(window), window, strict=True):
        mean += np.float32(weight) * view.H
    return mean


@dataclass(frozen=True)
class Refinement:
    """What makes the map that is cut of a slice's anomaly map. The defaults leave it as the
    reference implementation has it: alone, median-filtered."""

    neighbours_mm: float = 0.0  # width of the window of slices, 0 for the slice alone
    flip_tta: bool = False  # whether slices at odd levels are flipped for the network
    guided_pixels: int = 0  # radius of the guided filter, 0 for none

    @classmethod
    def of(
        cls, neighbours_mm: float, flip_tta: bool, guided_mm: float, pixel_mm: float
    ) -> "Refinement":
        """With the guided filter's radius in mm, on a grid with pixels of this size."""
        return cls(neighbours_mm, flip_tta, radius_pixels(guided_mm, pixel_mm))

    def flips(self, item: Slice) -> bool:
        """Whether the network sees this slice left for right."""
        return self.flip_tta and item.position.level % 2 == 1

    def flip(self, item: Slice) -> Slice:
        """The slice as the network sees it."""
        return (
            replace(item, x0=np.ascontiguousarray(item.x0[:, ::-1])) if self.flips(item) else item
        )

    def unflip(self, item: Slice, planes: Float32) -> Float32:
        """(C, H, W) that go with a slice as the network saw it, back the right way round."""
        return planes[:, ::-1] if self.flips(item) else planes

    def map_to_cut(self, window: Window[SliceView]) -> Float32:
        """The window's median-filtered maps fitted to the slice or, without a guided filter, the
        mean of its maps after the median filter: (H, W)."""
        if self.guided_pixels:
            maps = np.stack([view.smoothed for _, view in window])
            slices = np.stack([view.x0 for _, view in window])
            return guided_filter(maps, slices, window_weights(window), self.guided_pixels)
        if len(window) == 1:
            return window[0][1].smoothed
        return median(window_mean(window).mean(axis=0))


@dataclass
class _Volume(Generic[T]):
    """The slices of one volume, by level."""

    announced: set[int] = field(default_factory=set)  # have been fetched
    done: set[int] = field(default_factory=set)  # have a result
    released: set[int] = field(default_factory=set)  # were yielded with their window
    results: dict[int, T] = field(default_factory=dict)  # that a window may still need
    waiting: dict[int, Slice] = field(default_factory=dict)  # done and not released


class NeighbourWindow(Generic[T]):
    """Holds a slice's result back until those of its neighbours are there, too.

    A neighbour that was not announced may still come for as long as slices of its volume do; so the
    outermost slices, and those next to a gap, are held until the volume ends. Slices of one volume
    come together, each level once, in any order. A result is dropped when every window that needs
    it has been released.

    Parameters
    ----------
    width_mm : see :func:`reach`
    """

    def __init__(self, width_mm: float) -> None:
        self._width_mm = width_mm
        self._volumes: dict[int, _Volume[T]] = {}
        self._open: int | None = None  # the volume whose slices still come

    def announced(self, slices: Iterable[Slice | None]) -> Iterator[Slice | None]:
        """The same slices, noted as they are fetched.

        Raises
        ------
        ValueError
            If a level comes twice in a volume.
        """
        for item in slices:
            if item is not None:
                volume = self._volumes.setdefault(item.volume, _Volume())
                level = item.position.level
                if level in volume.announced:
                    raise ValueError(f"level {level} comes twice in volume {item.volume}")
                volume.announced.add(level)
                self._open = item.volume
            yield item
        self._open = None

    def add(self, item: Slice, result: T) -> Iterator[tuple[Slice, Window[T]]]:
        """Note the result of a slice.

        Yields
        ------
        Slices whose neighbours are all done, each once, with their window: the slice itself first,
        then its neighbours from the feet up
        """
        volume, level = self._volumes[item.volume], item.position.level
        volume.done.add(level)
        volume.results[level], volume.waiting[level] = result, item
        yield from self._release(item.volume, [*self._neighbours(item, level), level])
        yield from self.ready()

    def ready(self) -> Iterator[tuple[Slice, Window[T]]]:
        """As :meth:`add`: the slices of volumes that have ended, which wait for nothing more."""
        for number in [number for number in self._volumes if number != self._open]:
            volume = self._volumes[number]
            yield from self._release(number, list(volume.waiting))
            if len(volume.released) == len(volume.announced):
                del self._volumes[number]

    def _release(self, number: int, levels: Sequence[int]) -> Iterator[tuple[Slice, Window[T]]]:
        """Of these levels, those that wait for nothing."""
        volume = self._volumes[number]
        ended = number != self._open
        for level in sorted(levels):
            item = volume.waiting.get(level)
            if item is None:
                continue
            near = self._neighbours(item, level)
            expected = [other for other in near if other in volume.announced or not ended]
            if volume.done.issuperset(expected):
                del volume.waiting[level]
                volume.released.add(level)
                window = self._window(item, volume.results, expected)
                for other in (level, *expected):  # in no other window any more
                    if volume.released.issuperset([other, *self._neighbours(item, other)]):
                        del volume.results[other]
                yield item, window

    def _neighbours(self, item: Slice, level: int) -> list[int]:
        """The levels near a level of the slice's volume."""
        far = reach(self._width_mm, item.position.spacing_mm)
        return [k for k in range(max(0, level - far), level + far + 1) if k != level]

    def _window(self, item: Slice, results: dict[int, T], near: Sequence[int]) -> Window[T]:
        position = item.position
        window = [(1.0, results[position.level])]
        if near:
            distance_mm = (np.array(near, np.float64) - position.level) * position.spacing_mm
            weights = gaussian_weights(distance_mm, self._width_mm)
            window += [(float(w), results[k]) for w, k in zip(weights, near, strict=True)]
        return window
