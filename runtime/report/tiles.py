"""Slices as a radiologist looks at them: the patient's right on the left, the front on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..results import Segmentation
from ..volume.grid import masks_to_grid

T = TypeVar("T", bound=np.generic)
AIR = -0.9  # darker than any head
_MARGIN = 3  # pixels around the head


@dataclass(frozen=True)
class Tile:
    """One slice to show; rows lead to the patient's back, columns to the left.

    ``image``: (h, w) float32, the first scored modality
    in [-1, 1]; ``H``: (h, w) float32, the anomaly map; ``mask``: (h, w) bool, what the volume's
    mask marks here: nothing where the decision withheld it.
    """

    level: int
    unhealthy: bool
    probability: float
    image: NDArray[np.float32]
    H: NDArray[np.float32]
    mask: NDArray[np.bool_]


def tiles(found: Segmentation, most: int) -> tuple[Tile, ...]:
    """At most so many slices of a volume, from the feet up, all cut to the same window."""
    head, axes = found.geometry, found.geometry.grid.axes
    mask = found.mask.reshape(found.mask.shape[:3]) > 0
    masks = masks_to_grid(head.volume.from_source(mask), head.grid, head.placement)
    shown = choose([result.unhealthy for result in found.slices], most)
    images = radiological(np.stack([found.slices[i].x0[0] for i in shown]), axes)
    maps = radiological(np.stack([found.slices[i].H for i in shown]), axes)
    places = np.searchsorted(head.placement.levels, [found.slices[i].key for i in shown])
    masks = radiological(masks[places], axes)
    rows, columns = (_window((images > AIR) | masks, axis) for axis in (1, 2))
    return tuple(
        Tile(
            found.slices[i].key,
            bool(found.slices[i].unhealthy),
            float(found.slices[i].probability),
            images[n, rows, columns],
            maps[n, rows, columns],
            masks[n, rows, columns],
        )
        for n, i in enumerate(shown)
    )


def radiological(planes: NDArray[T], axes: str) -> NDArray[T]:
    """Slices on a grid, (..., size, size), as they are shown.

    Parameters
    ----------
    axes : where the rows and columns of a slice lead: see :class:`anofpdm.runtime.volume.grid.Grid`
    """
    turned = planes.swapaxes(-1, -2)
    return turned[..., ::-1, ::-1] if axes == "RA" else turned


def choose(unhealthy: Sequence[bool], most: int) -> list[int]:
    """Which slices to show, in order: all, or the unhealthy ones and some between them, or evenly
    chosen unhealthy ones."""
    if most < 1:
        raise ValueError(f"at least one slice is shown, not {most}")
    sick = [i for i, decision in enumerate(unhealthy) if decision]
    well = [i for i, decision in enumerate(unhealthy) if not decision]
    return sorted(_evenly(sick, most) + _evenly(well, most - min(len(sick), most)))


def _evenly(of: list[int], count: int) -> list[int]:
    """The middles of ``count`` equal parts."""
    if len(of) <= count:
        return of
    return [of[int((i + 0.5) * len(of) / count)] for i in range(count)]


def _window(shown: NDArray[np.bool_], axis: int) -> slice:
    """Where there is something along an axis of any slice; all of it, if nothing is."""
    others = tuple(other for other in range(shown.ndim) if other != axis)
    places = np.flatnonzero(shown.any(axis=others))
    if not len(places):
        return slice(None)
    return slice(max(int(places[0]) - _MARGIN, 0), int(places[-1]) + 1 + _MARGIN)
