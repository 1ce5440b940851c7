"""The connected parts of a mask, and where they lie in the patient."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from ..volume.nifti import unit_mm, voxel_ml


@dataclass(frozen=True)
class Space:
    """The grid of an image in the patient."""

    affine_mm: NDArray[np.float64]  # (4, 4) voxels to millimetres in RAS+
    shape: tuple[int, int, int]  # (X, Y, Z) in the image's axes
    axial: int  # the axis that is closest to feet-head
    from_the_top: bool  # whether its indices grow towards the feet

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Spacing along the image's own axes."""
        x, y, z = voxel_sizes(self.affine_mm)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel, in millilitres."""
        return voxel_ml(self.voxel_mm)

    @property
    def levels(self) -> int:
        """How many axial levels there are."""
        return self.shape[self.axial]

    def level(self, index: int) -> int:
        """The axial level, counted from the feet up, of an index along the axial axis; or back."""
        return self.levels - 1 - index if self.from_the_top else index

    def world_mm(self, voxel: NDArray[np.float64]) -> tuple[float, float, float]:
        """A place in voxels, (3,), as (right, front, top) in millimetres."""
        x, y, z = self.affine_mm[:3, :3] @ voxel + self.affine_mm[:3, 3]
        return float(x), float(y), float(z)

    def position_mm(self, level: int) -> float:
        """How high the middle of an axial level lies: its coordinate towards the top."""
        middle = (np.array(self.shape, np.float64) - 1) / 2
        middle[self.axial] = self.level(level)
        return self.world_mm(middle)[2]


def space_of(image: SpatialImage) -> Space:
    """The space of an image's first three axes, in the spatial units of its header."""
    orientation = io_orientation(image.affine)
    axial = int(np.flatnonzero(orientation[:, 0] == 2)[0])
    affine_mm = np.array(image.affine, np.float64)
    affine_mm[:3] *= unit_mm(image)
    x, y, z = image.shape[:3]
    return Space(affine_mm, (int(x), int(y), int(z)), axial, bool(orientation[axial, 1] < 0))


_TOUCHING = np.ones((3, 3, 3), np.uint8)  # by a face, an edge or a corner


@dataclass(frozen=True)
class Lesion:
    """One connected part of a mask: voxels that touch by a face, an edge or a corner (26)."""

    volume_ml: float  # millilitres
    voxels: int  # how many
    centroid_mm: tuple[float, float, float]  # mean of its voxels' centres: right, front, top (RAS+)
    levels: tuple[int, int]  # first and last axial level, from the feet up
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # first and last voxel an axis

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
    lesions = [_lesion(labels[box] == i, box, space) for i, box in enumerate(boxes[:count], 1)]
    return tuple(sorted(lesions, key=lambda lesion: -lesion.voxels))


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
