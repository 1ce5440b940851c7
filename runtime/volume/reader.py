"""NIfTI in and out: whatever the orientation, the mask lies exactly on the input's voxels."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from gzip import BadGzipFile
from io import BytesIO
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from ..errors import VolumeError
from .limits import LIMITS, Limits, check_claim, check_memory, estimate_bytes
from .nifti import first_line, unit_mm

S = TypeVar("S", bound=np.generic)
_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_VOXEL_MM, _MAX_MM = (0.01, 100.0), 4000.0


@dataclass(frozen=True)
class Volume:
    """Co-registered modalities of one head, in canonical (closest to RAS+) orientation.

    ``data``: (C, X, Y, Z) float32, any range, finite; ``voxel_mm``: spacing along X, Y, Z;
    ``source``: the image whose grid a mask must have; ``notes``: what was done that the user may
    want to know, a line each.
    """

    data: NDArray[np.float32]
    voxel_mm: tuple[float, float, float]
    source: SpatialImage
    notes: tuple[str, ...] = ()

    def canonical(self, array: NDArray[S]) -> NDArray[S]:
        """An (X, Y, Z) array in the source's axes, seen in the canonical ones: a view."""
        there = ornt_transform(io_orientation(self.source.affine), _RAS)
        seen: NDArray[S] = apply_orientation(array, there)
        return seen

    def from_source(self, array: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Turn an (X, Y, Z) array in the source's axes to the canonical ones."""
        return np.ascontiguousarray(self.canonical(array))

    def to_source(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turn a canonical (X, Y, Z) array back to the axes and shape of the source."""
        back = ornt_transform(_RAS, io_orientation(self.source.affine))
        turned = np.ascontiguousarray(apply_orientation(array, back))
        return turned.reshape(self.source_shape)

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
    names : what to call each image in messages, for instance its path
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
    notes: list[str] = []
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
                    f"{name} and {where} measure space in different units: mend a header"
                )
    elif len(first.shape) == 3 and modalities == 1:
        pass
    elif len(first.shape) != 4 or first.shape[3] != modalities:
        wanted = "(X, Y, Z)" if modalities == 1 else f"(X, Y, Z, {modalities})"
        raise VolumeError(
            f"{where} has shape {first.shape}, the model expects {wanted}: give one volume"
        )
    if min(first.shape) < 1:
        raise VolumeError(f"{where} has shape {first.shape}: it holds no voxels")
    affine = np.asarray(first.affine, dtype=np.float64)
    stored_axes = io_orientation(affine)
    to_ras = ornt_transform(stored_axes, _RAS)
    canonical = affine @ inv_ornt_aff(to_ras, first.shape[:3])
    spacing = voxel_sizes(canonical) * unit_mm(first)
    voxel_mm = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    if not all(_VOXEL_MM[0] <= mm <= _VOXEL_MM[1] for mm in voxel_mm):
        raise VolumeError(
            f"{where}: are its voxels really {' x '.join(f'{mm:g}' for mm in voxel_mm)} mm? Those "
            f"of a head measure {_VOXEL_MM[0]:g} to {_VOXEL_MM[1]:g} mm: mend the header"
        )
    if (
        max(n * mm for n, mm in zip(_turned(first.shape, stored_axes), voxel_mm, strict=True))
        > _MAX_MM
    ):
        raise VolumeError(
            f"{where} measures more than {_MAX_MM / 1000:g} m: is its voxel size right?"
        )
    others = [image for image in images if not same_grid(image, first)]
    shape = first.shape[:3]
    needed = estimate_bytes([shape, *(o.shape[:3] for o in others)], modalities)
    check_memory(needed, f"{where}, shape {first.shape},", limits)
    data, views = _room(modalities, shape, stored_axes)
    if len(images) == 1:
        fill(views if len(first.shape) == 4 else views[..., 0], first, where)
    else:
        for c, (image, name) in enumerate(zip(images, names, strict=True)):
            if not same_grid(image, first):
                # As float32: in the stored type, interpolated values would be rounded.
                values = read_values(image, name, limits).reshape(image.shape[:3])
                moved = resample_onto(nib.Nifti1Image(values, image.affine), first)
                fill(views[..., c], moved, name)
                notes.append(f"{name} was resampled onto the grid of {where}")
            else:
                fill(views[..., c].reshape(image.shape), image, name)
    for c, array in enumerate(data):
        if array.min() == array.max():
            which = names[c] if len(names) > 1 else where
            raise VolumeError(f"{which} has the same value, {array.flat[0]:g}, in every voxel")
    return Volume(data, voxel_mm, first, tuple(notes))


def _room(
    modalities: int, shape: tuple[int, ...], stored_axes: NDArray[np.generic]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Room for a volume, (C, X, Y, Z) with each axial slice in one piece, and the same memory in
    the axes of the source: (*shape, C)."""
    back = ornt_transform(_RAS, stored_axes)
    X, Y, Z = _turned(shape, stored_axes)
    try:
        data = np.empty((modalities, Z, Y, X), np.float32).transpose(0, 3, 2, 1)
    except (MemoryError, ValueError) as error:
        raise VolumeError(f"shape {shape} is too large for memory: resample it") from error
    return data, apply_orientation(np.moveaxis(data, 0, 3), back)


def _turned(shape: tuple[int, ...], stored_axes: NDArray[np.generic]) -> tuple[int, int, int]:
    """Voxels along the canonical axes."""
    first, second, third = np.argsort(ornt_transform(stored_axes, _RAS)[:, 0])
    return int(shape[first]), int(shape[second]), int(shape[third])


def same_grid(one: SpatialImage, other: SpatialImage) -> bool:
    """Whether two images have the same voxels (affines within a thousandth of a millimetre)."""
    return one.shape[:3] == other.shape[:3] and bool(
        np.allclose(one.affine, other.affine, atol=1e-3)
    )


def resample_onto(image: SpatialImage, target: SpatialImage, order: int = 1) -> SpatialImage:
    """Resample a 3-D image onto the voxels of another, by their affines."""
    from nibabel.processing import resample_from_to  # with SciPy: slow to import

    onto = (target.shape[:3], target.affine)
    resampled: SpatialImage = resample_from_to(image, onto, order=order)
    return resampled


def read_values(image: SpatialImage, name: str, limits: Limits = LIMITS) -> NDArray[np.float32]:
    """Voxels as float32, with the header's scale factors applied.

    Raises
    ------
    VolumeError
        If they are not real numbers, not finite, not all there, or too many.
    """
    check_claim(image, name, limits)
    try:
        values = np.empty(image.shape, np.float32, order="F")
    except (MemoryError, ValueError) as error:
        raise VolumeError(f"{name} claims shape {image.shape}: too large for memory") from error
    fill(values, image, name)
    return values


def _check_affine(image: SpatialImage, name: str) -> None:
    affine = np.zeros((4, 4)) if image.affine is None else np.asarray(image.affine, np.float64)
    with np.errstate(all="ignore"):
        linear = affine[:3, :3]
        lengths = np.sqrt((linear**2).sum(axis=0))
        # 1 for a box, 0 when the three axes lie in a plane.
        volume = abs(np.linalg.det(linear)) / max(float(np.prod(lengths)), np.finfo(float).tiny)
        known = np.isfinite(affine).all() and volume > 1e-3
        known = known and np.isfinite(io_orientation(affine)).all()
    if not known:
        raise VolumeError(
            f"{name} has a singular affine: its orientation is unknown; mend the header's sform "
            "or qform"
        )


_SLAB_VOXELS = 2**20
# Padding that writers leave behind the voxels; less than a slice.
_TRAILING_BYTES = 2**16
_UNREADABLE = (EOFError, OSError, OverflowError, ValueError, zlib.error)


def fill(out: NDArray[np.float32], image: SpatialImage, name: str) -> None:
    """Read all voxels, with the header's scale factors applied.

    Parameters
    ----------
    out : of the image's shape, in whatever memory layout
    name : what to call the image in messages

    Raises
    ------
    VolumeError
        If they are not real numbers, not finite, not all there, or fewer than there are.
    """
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind not in "biuf":
        raise VolumeError(f"{name} holds {kind} voxels: give one real value a voxel")
    try:
        with np.errstate(all="ignore"):
            for place, values in _pieces(image.dataobj, tuple(image.shape)):
                if not np.isfinite(values).all():
                    raise VolumeError(
                        f"{name} holds NaN or infinite values: replace them, for instance by 0"
                    )
                out[place] = values
    except VolumeError:
        raise
    except _UNREADABLE as error:
        raise VolumeError(f"{name} is truncated or damaged: {first_line(error)}") from error
    except MemoryError as error:
        raise VolumeError(f"{name} claims shape {image.shape}: too large for memory") from error


def _pieces(voxels: Any, shape: tuple[int, ...]) -> Iterator[tuple[Any, NDArray[np.float32]]]:
    """Slabs, and where they belong."""
    if isinstance(voxels, np.ndarray) and len(shape) >= 3:
        for place in _slabs(shape):
            yield place, np.asarray(voxels[place], np.float32)
    elif type(voxels) is ArrayProxy and voxels.order == "F" and isinstance(voxels.file_like, str):
        # Not through the proxy: for each slab, it would inflate a file from its beginning.
        with ImageOpener(voxels.file_like) as file:
            file.seek(voxels.offset)
            for place in _slabs(shape):
                yield place, _read(file, voxels, _extent(place, shape))
            _check_end(file)
    else:
        yield ..., np.asarray(voxels, dtype=np.float32)


def _slabs(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Parts of an array that follow each other in Fortran order, each contiguous."""
    if len(shape) < 3:
        yield tuple(slice(0, n) for n in shape)
        return
    planes = max(1, _SLAB_VOXELS // max(1, shape[0] * shape[1]))
    for further in np.ndindex(shape[:2:-1]):
        rest = tuple(slice(i, i + 1) for i in reversed(further))
        for first in range(0, shape[2], planes):
            last = min(first + planes, shape[2])
            yield (slice(0, shape[0]), slice(0, shape[1]), slice(first, last), *rest)


def _extent(place: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(len(range(n)[part]) for part, n in zip(place, shape, strict=True))


def _read(file: ImageOpener, proxy: ArrayProxy, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The next voxels of a file, scaled as the library does."""
    wanted = int(np.prod(shape, dtype=np.int64)) * proxy.dtype.itemsize
    raw = file.read(wanted)
    if len(raw) < wanted:
        raise EOFError(f"{wanted - len(raw)} bytes of a slab are missing")
    spec = (shape, proxy.dtype, 0, proxy.slope, proxy.inter)
    return np.asarray(ArrayProxy(BytesIO(raw), spec), dtype=np.float32)


def _check_end(file: ImageOpener) -> None:
    """Find a file to end behind its voxels; a compressed one, to be intact."""
    try:
        beyond = len(file.read(_TRAILING_BYTES + 1))
    except BadGzipFile as error:
        if "Not a gzipped file" in str(error):  # what follows the compressed data
            return
        raise
    if beyond > _TRAILING_BYTES:
        raise EOFError("it goes on behind the voxels that its header claims")
