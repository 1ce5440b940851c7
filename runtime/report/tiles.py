"""Slices as a radiologist looks at them: the patient's right on the left, the front on top."""

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
    """One slice to show in radiological convention: rows lead to the patient's back, columns to the
    left."""

    level: int  # axial index
    unhealthy: bool  # the image-level decision
    probability: float  # of being unhealthy
    image: NDArray[np.float32]  # (h, w) the first scored modality, in [-1, 1]
    H: NDArray[np.float32]  # (h, w) anomaly map
    mask: NDArray[np.bool_]  # (h, w) what the volume's mask marks: nothing where it is gated


def tiles(segmentation: Segmentation, most: int) -> tuple[Tile, ...]:
    """At most so many slices of a volume, from the feet up, all cut to the same window."""
    head, axes = segmentation.geometry, segmentation.geometry.grid.axes
    mask = segmentation.mask.reshape(segmentation.mask.shape[:3]) > 0
    masks = masks_to_grid(head.volume.from_source(mask), head.grid, head.placement)
    chosen = choose([result.unhealthy for result in segmentation.slices], most)
    images = radiological(np.stack([segmentation.slices[i].x0[0] for i in chosen]), axes)
    maps = radiological(np.stack([segmentation.slices[i].H for i in chosen]), axes)
    places = np.searchsorted(head.placement.levels, [segmentation.slices[i].key for i in chosen])
    masks = radiological(masks[places], axes)
    rows, columns = (_window((images > AIR) | masks, axis) for axis in (1, 2))
    return tuple(
        Tile(
            segmentation.slices[i].key,
            bool(segmentation.slices[i].unhealthy),
            float(segmentation.slices[i].probability),
            images[n, rows, columns],
            maps[n, rows, columns],
            masks[n, rows, columns],
        )
        for n, i in enumerate(chosen)
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


def _window(chosen: NDArray[np.bool_], axis: int) -> slice:
    """Where there is something along an axis of any slice; all of it, if nothing is."""
    others = tuple(other for other in range(chosen.ndim) if other != axis)
    places = np.flatnonzero(chosen.any(axis=others))
    if not len(places):
        return slice(None)
    return slice(max(int(places[0]) - _MARGIN, 0), int(places[-1]) + 1 + _MARGIN)
