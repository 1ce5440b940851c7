"""Where a mask's voxels lie in the patient: millimetres and axial levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from ..volume.nifti import unit_mm


@dataclass(frozen=True)
class Space:
    """The grid of an image in the patient.

    ``affine_mm``: (4, 4), voxels to millimetres in RAS+; ``shape``: (X, Y, Z) in the image's own
    axes; ``axial``: the axis that is closest to feet-head; ``from_the_top``: whether its indices
    grow towards the feet.
    """

    affine_mm: NDArray[np.float64]
    shape: tuple[int, int, int]
    axial: int
    from_the_top: bool

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Spacing along the image's own axes."""
        x, y, z = voxel_sizes(self.affine_mm)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel, in millilitres, as :class:`anofpdm.runtime.volume.slicing.Head` has it."""
        return float(np.prod(self.voxel_mm)) / 1000

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
