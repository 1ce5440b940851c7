"""Images of one or several modalities as one volume in canonical orientation."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from ..errors import VolumeError
from .limits import LIMITS, Limits, check_claim, check_memory, estimate_bytes
from .nifti import unit_mm
from .voxels import fill, read_values

S = TypeVar("S", bound=np.generic)
_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_VOXEL_MM, _MAX_MM = (0.01, 100.0), 4000.0


@dataclass(frozen=True)
class Volume:
    """Co-registered modalities of one head, in canonical (closest to RAS+) orientation."""

    data: NDArray[np.float32]  # (C, X, Y, Z), any range, finite
    voxel_mm: tuple[float, float, float]  # spacing along X, Y, Z
    source: SpatialImage  # the image whose grid a mask must have
    notes: tuple[str, ...] = ()  # what the user may want to know, a line each

    def canonical(self, array: NDArray[S]) -> NDArray[S]:
        """An (X, Y, Z) array in the source's axes, seen in the canonical ones: a view."""
        there = ornt_transform(io_orientation(self.source.affine), _RAS)
        view: NDArray[S] = apply_orientation(array, there)
        return view

    def from_source(self, array: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Turn an (X, Y, Z) array in the source's axes to the canonical ones."""
        return np.ascontiguousarray(self.canonical(array))

    @property
    def source_shape(self) -> tuple[int, ...]:
        """What shape a mask must have: the source's, without modalities."""
        shape = tuple(int(n) for n in self.source.shape)
        return shape if shape[3:] == (1,) else shape[:3]


def read_volume(
    images: list[SpatialImage], names: list[str], modalities: int, limits: Limits = LIMITS
) -> Volume:
    """Read co-registered images into one volume; see :class:`Volume`.

    Parameters
    ----------
    images : one 3-D image per modality, or one 4-D image with the modalities along its last axis;
        those on other voxels than the first are resampled onto it, linearly
    names : of the images in messages, for instance their paths
    modalities : how many the model expects
    limits : beyond which nothing is read

    Raises
    ------
    VolumeError
        If the shape, type, affine or values cannot be used, or would take too much memory.
    """
    first, where = images[0], names[0]
    for image, name in zip(images, names, strict=True):
        check_claim(image, name, limits)
        _check_affine(image, name)
    _check_shapes(images, names, modalities)
    stored_axes = io_orientation(np.asarray(first.affine, np.float64))
    voxel_mm = _voxel_mm(first, where, stored_axes)
    others = [image for image in images if not same_grid(image, first)]
    shape = first.shape[:3]
    needed = estimate_bytes([shape, *(image.shape[:3] for image in others)], modalities)
    check_memory(needed, f"{where}, shape {first.shape},", limits)
    data, views = _allocate(modalities, shape, stored_axes)
    notes: list[str] = []
    if len(images) == 1:
        fill(views if len(first.shape) == 4 else views[..., 0], first, where)
    else:
        for c, (image, name) in enumerate(zip(images, names, strict=True)):
            if same_grid(image, first):
                fill(views[..., c].reshape(image.shape), image, name)
                continue
            # As float32: in the stored type, interpolated values would be rounded.
            values = read_values(image, name, limits).reshape(image.shape[:3])
            fill(views[..., c], resample_onto(nib.Nifti1Image(values, image.affine), first), name)
            # Without the folders, which are often named after patients.
            notes.append(f"{Path(name).name} was resampled onto the grid of {Path(where).name}")
    for c, array in enumerate(data):
        if array.min() == array.max():
            which = names[c] if len(names) > 1 else where
            raise VolumeError(f"{which} has the same value, {array.flat[0]:g}, in every voxel")
    return Volume(data, voxel_mm, first, tuple(notes))


def _check_shapes(images: list[SpatialImage], names: list[str], modalities: int) -> None:
    """Refuse images that are not one volume of so many modalities."""
    first, where = images[0], names[0]
    if len(images) > 1:
        if len(images) != modalities:
            raise VolumeError(
                f"{len(images)} images given, the model expects {modalities}: for several cases, "
                "give a folder of them"
            )
        for image, name in zip(images, names, strict=True):
            if image.shape[3:] not in ((), (1,)) or len(image.shape) < 3:
                raise VolumeError(f"{name} has shape {image.shape}: give one 3-D image a modality")
            if unit_mm(image) != unit_mm(first):
                raise VolumeError(
                    f"{name} and {where} measure space in different units: correct a header"
                )
    elif first.shape[3:] != (modalities,) and not (len(first.shape) == 3 and modalities == 1):
        wanted = "(X, Y, Z)" if modalities == 1 else f"(X, Y, Z, {modalities})"
        raise VolumeError(
            f"{where} has shape {first.shape}, the model expects {wanted}: give one volume"
        )
    if min(first.shape) < 1:
        raise VolumeError(f"{where} has shape {first.shape}: it holds no voxels")


def _voxel_mm(
    image: SpatialImage, name: str, stored_axes: NDArray[np.generic]
) -> tuple[float, float, float]:
    """Spacing along the canonical axes, if it can be that of a head."""
    affine = np.asarray(image.affine, np.float64)
    canonical = affine @ inv_ornt_aff(ornt_transform(stored_axes, _RAS), image.shape[:3])
    x, y, z = (float(mm) for mm in voxel_sizes(canonical) * unit_mm(image))
    if not all(_VOXEL_MM[0] <= mm <= _VOXEL_MM[1] for mm in (x, y, z)):
        raise VolumeError(
            f"{name}: are its voxels really {x:g} x {y:g} x {z:g} mm? Those of a head measure "
            f"{_VOXEL_MM[0]:g} to {_VOXEL_MM[1]:g} mm: correct the header"
        )
    counts = _canonical_shape(image.shape, stored_axes)
    if max(n * mm for n, mm in zip(counts, (x, y, z), strict=True)) > _MAX_MM:
        raise VolumeError(
            f"{name} measures more than {_MAX_MM / 1000:g} m: is its voxel size right?"
        )
    return x, y, z


def _allocate(
    modalities: int, shape: tuple[int, ...], stored_axes: NDArray[np.generic]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Memory for a volume, (C, X, Y, Z) with each axial slice in one piece, and the same memory in
    the axes of the source: (*shape, C)."""
    back = ornt_transform(_RAS, stored_axes)
    X, Y, Z = _canonical_shape(shape, stored_axes)
    try:
        data = np.empty((modalities, Z, Y, X), np.float32).transpose(0, 3, 2, 1)
    except (MemoryError, ValueError) as error:
        raise VolumeError(f"shape {shape} is too large for memory: resample it") from error
    return data, apply_orientation(np.moveaxis(data, 0, 3), back)


def _canonical_shape(
    shape: tuple[int, ...], stored_axes: NDArray[np.generic]
) -> tuple[int, int, int]:
    """Voxels along the canonical axes."""
    first, second, third = np.argsort(ornt_transform(stored_axes, _RAS)[:, 0])
    return int(shape[first]), int(shape[second]), int(shape[third])


def same_grid(image: SpatialImage, other: SpatialImage) -> bool:
    """Whether two images have the same voxels (affines within a thousandth of a millimetre)."""
    return image.shape[:3] == other.shape[:3] and bool(
        np.allclose(image.affine, other.affine, atol=1e-3)
    )


def resample_onto(image: SpatialImage, target: SpatialImage, order: int = 1) -> SpatialImage:
    """Resample a 3-D image onto the voxels of another, by their affines."""
    from nibabel.processing import resample_from_to  # with SciPy: slow to import

    onto = (target.shape[:3], target.affine)
    resampled: SpatialImage = resample_from_to(image, onto, order=order)
    return resampled


def _check_affine(image: SpatialImage, name: str) -> None:
    affine = np.zeros((4, 4)) if image.affine is None else np.asarray(image.affine, np.float64)
    with np.errstate(all="ignore"):
        linear = affine[:3, :3]
        lengths = np.sqrt((linear**2).sum(axis=0))
        # 1 for a box, 0 when the three axes lie in a plane.
        volume = abs(np.linalg.det(linear)) / max(float(np.prod(lengths)), np.finfo(float).tiny)
        usable = np.isfinite(affine).all() and volume > 1e-3
        usable = usable and np.isfinite(io_orientation(affine)).all()
    if not usable:
        raise VolumeError(
            f"{name} has a singular affine: its orientation is unknown; correct the header's sform "
            "or qform"
        )
