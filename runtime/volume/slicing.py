"""From a volume's voxels to the network's slices, and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import ArrayLike, NDArray

from ..errors import VolumeError
from ..method.process import Slice, SlicePosition
from .grid import Grid, GridPlacement, from_grid, to_grid
from .limits import LIMITS, Limits
from .nifti import voxel_ml
from .reader import Volume, read_volume


@dataclass(frozen=True)
class VolumeGeometry:
    """Where the network's slices lie in a volume; holds none of its voxels."""

    volume: Volume  # without data
    grid: Grid  # the model's
    placement: GridPlacement  # of the grid in the volume

    @property
    def source(self) -> SpatialImage:
        """The image whose grid masks and maps must have."""
        return self.volume.source

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel, in millilitres."""
        return voxel_ml(self.volume.voxel_mm)

    def to_source(self, planes: NDArray[np.generic]) -> NDArray[np.float32]:
        """Maps of all slices, (n, size, size), in the source's axes and shape: float32, linear in
        the plane, 0 where there is no slice."""
        out = np.zeros(self.volume.source_shape, np.float32, order="F")
        canonical = self.volume.canonical(out.reshape(out.shape[:3]))
        from_grid(planes, self.grid, self.placement, canonical)
        return out


def to_slices(
    images: Sequence[SpatialImage],
    names: Sequence[str] | None,
    modalities: Sequence[str],
    grid: Grid,
    limits: Limits = LIMITS,
) -> tuple[VolumeGeometry, NDArray[np.float32]]:
    """The slices that show enough of a head.

    Returns
    -------
    geometry : the way back
    slices : (n, C, size, size) float32 in [-1, 1], n >= 1

    Raises
    ------
    VolumeError
        If the images cannot be used.
    """
    labels = names_of(images, names)
    volume = read_volume(list(images), labels, len(modalities), limits)
    slices, placement = to_grid(volume.data, volume.voxel_mm, grid)
    if not len(slices):
        raise VolumeError(
            f"{labels[0]} shows too little of a head on every slice: are its voxels really "
            f"{' x '.join(f'{mm:g}' for mm in volume.voxel_mm)} mm?"
        )
    # The voxels have been resampled: what is needed from here on is where they were.
    without = Volume(volume.data[:, :0].copy(), volume.voxel_mm, volume.source, volume.notes)
    return VolumeGeometry(without, grid, placement), slices


def names_of(images: Sequence[SpatialImage], names: Sequence[str] | None = None) -> list[str]:
    """What messages call the images: these names, or those of their files."""
    if names and len(names) != len(images):
        raise VolumeError(f"{len(names)} names for {len(images)} images")
    return list(names) if names else [image.get_filename() or "the image" for image in images]


def as_slices(geometry: VolumeGeometry, slices: NDArray[np.float32], volume: int) -> list[Slice]:
    """The slices as the forward process takes them: keys are axial indices."""
    levels, spacing_mm = geometry.placement.levels.tolist(), float(geometry.volume.voxel_mm[2])
    return [
        Slice(level, x0, volume, SlicePosition(level, spacing_mm))
        for level, x0 in zip(levels, slices, strict=True)
    ]


def as_images(
    images: SpatialImage | Sequence[SpatialImage] | ArrayLike, affine: ArrayLike | None
) -> list[SpatialImage]:
    """The argument of :meth:`anofpdm.Segmenter.segment` as images."""
    if isinstance(images, SpatialImage):
        return [images]
    if isinstance(images, Sequence) and images and isinstance(images[0], SpatialImage):
        return list(images)
    if isinstance(images, str | Path):
        raise VolumeError(f"pass nibabel.load({str(images)!r}), not its name")
    if affine is None:
        raise VolumeError("an array needs its affine: pass affine=(4, 4), voxels to millimetres")
    array = np.asarray(images)
    if array.dtype.kind not in "biuf":
        raise VolumeError(f"the array holds {array.dtype} values: give real numbers")
    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4):
        raise VolumeError(f"affine has shape {matrix.shape}: it must be (4, 4)")
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise VolumeError("affine is singular: it must lead from voxels to millimetres")
    return [nib.Nifti1Image(array.astype(np.float32, copy=False), matrix)]
