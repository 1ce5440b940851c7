"""NIfTI in and out: whatever the orientation, the mask lies exactly on the input's voxels."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.processing import resample_from_to
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

from .errors import OutputError, VolumeError
from .files import whole_file, writable_folder

_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_SUFFIXES = (".nii", ".nii.gz")
_UNREADABLE = (
    ImageFileError, HeaderDataError, EOFError, OSError, OverflowError, ValueError, zlib.error,
)  # fmt: skip
_UNITS_MM = {"meter": 1000.0, "micron": 0.001}
# What places a mask, copied as it stands: nothing is computed, so nothing is rounded or refused.
_PLACING_FIELDS = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


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

    def from_source(self, array: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Turn an (X, Y, Z) array in the source's axes to the canonical ones."""
        there = ornt_transform(io_orientation(self.source.affine), _RAS)
        return np.ascontiguousarray(apply_orientation(array, there))

    def to_source(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turn a canonical (X, Y, Z) array back to the axes and shape of the source."""
        back = ornt_transform(_RAS, io_orientation(self.source.affine))
        turned = np.ascontiguousarray(apply_orientation(array, back))
        if self.source.shape[3:] == (1,):
            return turned[..., None]
        return turned


def load_image(path: Path) -> SpatialImage:
    """Open a NIfTI (or Analyze) image without reading its voxels.

    Raises
    ------
    VolumeError
        If it is not there or not such an image.
    """
    if not path.exists():
        raise VolumeError(f"{path} does not exist")
    if path.is_dir():
        raise VolumeError(f"{path} is a folder: name a NIfTI file (.nii, .nii.gz, .hdr/.img)")
    try:
        image = nib.load(path)
    except _UNREADABLE as error:
        raise VolumeError(f"{path} is not a readable NIfTI image: {_first_line(error)}") from error
    if not isinstance(image, nib.analyze.AnalyzeImage | nib.spm99analyze.Spm99AnalyzeImage):
        raise VolumeError(f"{path} is {type(image).__name__}, not NIfTI: convert it first")
    return image


def read_volume(images: list[SpatialImage], names: list[str], modalities: int) -> Volume:
    """Read co-registered images into one volume; see :class:`Volume`.

    Parameters
    ----------
    images : one 3-D image per modality, or one 4-D image with the modalities along its last axis;
        those on other voxels than the first are resampled onto it, linearly
    names : what to call each image in messages, for instance its path
    modalities : how many the model expects

    Raises
    ------
    VolumeError
        If the shape, type, affine or values cannot be used.
    """
    first, where = images[0], names[0]
    for image, name in zip(images, names, strict=True):
        _check_affine(image, name)
    notes: list[str] = []
    if len(images) > 1:
        if len(images) != modalities:
            raise VolumeError(f"{len(images)} images given, the model expects {modalities}")
        for image, name in zip(images, names, strict=True):
            if image.shape[3:] not in ((), (1,)) or len(image.shape) < 3:
                raise VolumeError(f"{name} has shape {image.shape}: give one 3-D image a modality")
            if _unit_mm(image) != _unit_mm(first):
                raise VolumeError(
                    f"{name} and {where} measure space in different units: mend a header"
                )
    elif len(first.shape) == 3 and modalities == 1:
        pass
    elif len(first.shape) != 4 or first.shape[3] != modalities:
        wanted = "(X, Y, Z)" if modalities == 1 else f"(X, Y, Z, {modalities})"
        raise VolumeError(f"{where} has shape {first.shape}, the model expects {wanted}")
    if min(first.shape) < 1:
        raise VolumeError(f"{where} has shape {first.shape}: it holds no voxels")
    affine = np.asarray(first.affine, dtype=np.float64)
    if len(images) == 1:
        values = read_values(first, where)
        arrays = [values] if values.ndim == 3 else [values[..., c] for c in range(modalities)]
    else:
        arrays = []
        for image, name in zip(images, names, strict=True):
            values = read_values(image, name).reshape(image.shape[:3])
            if not same_grid(image, first):
                # As float32: in the stored type, interpolated values would be rounded.
                values = read_values(
                    resample_onto(nib.Nifti1Image(values, image.affine), first), name
                )
                notes.append(f"{name} was resampled onto the grid of {where}")
            arrays.append(values)
    for c, array in enumerate(arrays):
        if array.min() == array.max():
            which = names[c] if len(names) > 1 else where
            raise VolumeError(f"{which} has the same value, {array.flat[0]:g}, in every voxel")
    to_ras = ornt_transform(io_orientation(affine), _RAS)
    data = np.stack([np.ascontiguousarray(apply_orientation(a, to_ras)) for a in arrays])
    canonical = affine @ inv_ornt_aff(to_ras, first.shape[:3])
    spacing = np.sqrt((canonical[:3, :3] ** 2).sum(axis=0)) * _unit_mm(first)
    voxel_mm = (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    return Volume(data, voxel_mm, first, tuple(notes))


def mask_image(mask: NDArray[np.uint8], source: SpatialImage) -> nib.Nifti1Image:
    """A binary mask, uint8 in the source's axes and shape, as an image: see :func:`like`."""
    image = like(mask, source, b"anofpdm anomaly mask")
    image.header["cal_max"] = 1
    return image


def like(array: NDArray[np.generic], source: SpatialImage, what: bytes) -> nib.Nifti1Image:
    """An image with the source's affine, form codes and units.

    Parameters
    ----------
    array : in the source's axes and shape
    what : the header's description, at most 79 bytes
    """
    kind: type[nib.Nifti1Image] = nib.Nifti1Image
    if isinstance(source, nib.Nifti2Image):
        kind = nib.Nifti2Image
    image = kind(array, source.affine)
    if isinstance(source, nib.Nifti1Pair):
        for name in _PLACING_FIELDS:
            image.header[name] = source.header[name]
    image.header["descrip"] = what
    return image


def check_output(path: Path, inputs: list[Path]) -> None:
    """Refuse an output that is no NIfTI name, is one of the inputs, or could not be written."""
    if not path.name.endswith(_SUFFIXES):
        raise OutputError(f"cannot write {path}: name it .nii or .nii.gz")
    for name in inputs:
        if path.exists() and name.exists() and path.samefile(name):
            raise OutputError(f"cannot write {path}: it is the input; choose another name")
    writable_folder(path)


def save_image(image: nib.Nifti1Image, path: Path) -> None:
    """Write an image, whole or not at all."""
    with whole_file(path) as beside:
        nib.save(image, beside)


def same_grid(one: SpatialImage, other: SpatialImage) -> bool:
    """Whether two images have the same voxels (affines within a thousandth of a millimetre)."""
    return one.shape[:3] == other.shape[:3] and bool(
        np.allclose(one.affine, other.affine, atol=1e-3)
    )


def resample_onto(image: SpatialImage, target: SpatialImage, order: int = 1) -> SpatialImage:
    """Resample a 3-D image onto the voxels of another, by their affines."""
    onto = (target.shape[:3], target.affine)
    resampled: SpatialImage = resample_from_to(image, onto, order=order)
    return resampled


def read_values(image: SpatialImage, name: str) -> NDArray[np.float32]:
    """Voxels as float32, with the header's scale factors applied.

    Raises
    ------
    VolumeError
        If they are not real numbers, not finite, or not all there.
    """
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind not in "biuf":
        raise VolumeError(f"{name} holds {kind} voxels: give one real value a voxel")
    try:
        with np.errstate(all="ignore"):
            values = np.asarray(image.dataobj, dtype=np.float32)
    except _UNREADABLE as error:
        raise VolumeError(f"{name} is truncated or damaged: {_first_line(error)}") from error
    except MemoryError as error:
        raise VolumeError(f"{name} claims shape {image.shape}: too large for memory") from error
    if not np.isfinite(values).all():
        raise VolumeError(f"{name} holds NaN or infinite values: replace them, for instance by 0")
    return values


def _check_affine(image: SpatialImage, name: str) -> None:
    affine = np.zeros((4, 4)) if image.affine is None else np.asarray(image.affine, np.float64)
    linear = affine[:3, :3]
    lengths = np.sqrt((linear**2).sum(axis=0))
    # 1 for a box, 0 when the three axes lie in a plane.
    volume = abs(np.linalg.det(linear)) / max(float(np.prod(lengths)), np.finfo(float).tiny)
    if not np.isfinite(affine).all() or not volume > 1e-3:
        raise VolumeError(
            f"{name} has a singular affine: its orientation is unknown; mend the header's sform "
            "or qform"
        )


def _unit_mm(image: SpatialImage) -> float:
    """Millimetres in one spatial unit of the header; 1 where the header says nothing."""
    if not isinstance(image, nib.Nifti1Pair):
        return 1.0
    return _UNITS_MM.get(image.header.get_xyzt_units()[0], 1.0)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
