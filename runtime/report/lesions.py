"""The connected parts of a mask, one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from .space import Space, space_of

_TOUCHING = np.ones((3, 3, 3), np.uint8)  # by a face, an edge or a corner


@dataclass(frozen=True)
class Lesion:
    """One connected part of a mask: voxels that touch by a face, an edge or a corner (26).

    ``volume_ml``, ``voxels``: its size; ``centroid_mm``: the mean of its voxels' centres, (right,
    front, top), millimetres in RAS+; ``levels``: its first and last axial level, counted from the
    feet up like :attr:`anofpdm.runtime.results.SliceResult.key`; ``box``: its first and last voxel
    along each axis of the input.
    """

    volume_ml: float
    voxels: int
    centroid_mm: tuple[float, float, float]
    levels: tuple[int, int]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "volume_ml": self.volume_ml,
            "voxels": self.voxels,
            "centroid_mm": list(self.centroid_mm),
            "levels": list(self.levels),
            "box": [list(ends) for ends in self.box],
        }


def find_lesions(mask: NDArray[np.generic], source: SpatialImage) -> tuple[Lesion, ...]:
    """The lesions of a mask, largest first.

    Parameters
    ----------
    mask : (X, Y, Z) or (X, Y, Z, 1), any type, not 0 in a lesion; on the voxels of ``source``
    source : the image that was segmented, or its mask; its header's spatial units are honoured
    """
    from scipy import ndimage

    space = space_of(source)
    labels, count = ndimage.label(np.asarray(mask).reshape(space.shape) != 0, _TOUCHING)
    boxes = ndimage.find_objects(labels)
    found = [_lesion(labels[box] == i, box, space) for i, box in enumerate(boxes[:count], 1)]
    return tuple(sorted(found, key=lambda lesion: -lesion.voxels))


def _lesion(inside: NDArray[np.bool_], box: tuple[slice, slice, slice], space: Space) -> Lesion:
    """``inside``: the lesion within its box."""
    voxels = int(np.count_nonzero(inside))
    first = np.array([side.start for side in box])
    x, y, z = ((int(side.start), int(side.stop) - 1) for side in box)
    low, high = sorted(space.level(end) for end in (x, y, z)[space.axial])
    return Lesion(
        volume_ml=voxels * space.voxel_ml,
        voxels=voxels,
        centroid_mm=space.world_mm(np.argwhere(inside).mean(axis=0) + first),
        levels=(low, high),
        box=(x, y, z),
    )
