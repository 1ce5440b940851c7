"""NIfTI in and out: whatever the orientation, the mask lies exactly on the input's voxels."""

import warnings
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.fileholders import FileHolder
from nibabel.openers import ImageOpener
from nibabel.spatialimages import SpatialImage
from nibabel.spm2analyze import Spm2AnalyzeImage
from nibabel.spm99analyze import Spm99AnalyzeImage
from numpy.typing import NDArray

from ..errors import QUOTED, VolumeError, one_line
from ..util.files import whole_file
from .limits import LIMITS, Limits, check_claim

_OURS = b"anofpdm anomaly "
_UNITS_MM = {"meter": 1000.0, "micron": 0.001}
# What places a mask, copied as it stands: nothing is computed, so nothing is rounded or refused.
_PLACING_FIELDS = (
    "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


def load_image(path: Path, limits: Limits = LIMITS) -> SpatialImage:
    """Open a NIfTI (or Analyze) image without reading its voxels.

    Raises
    ------
    VolumeError
        If it is not there or not such an image, or claims more voxels than it can hold.
    """
    if not path.exists():
        raise VolumeError(f"{path} does not exist")
    if path.is_dir():
        raise VolumeError(f"{path} is a folder: name a NIfTI file (.nii, .nii.gz, .hdr/.img)")
    if not is_nifti_name(path):
        raise VolumeError(f"{path} is not NIfTI (.nii, .nii.gz, .hdr/.img): convert it first")
    image = open_header(path)
    check_claim(image, str(path), limits)
    return image


def is_own_output(image: SpatialImage) -> bool:
    """Whether it is a mask or a map that :func:`image_like` made."""
    if not isinstance(image, nib.Nifti1Pair):
        return False
    return bytes(image.header["descrip"]).startswith(_OURS)


def mask_image(mask: NDArray[np.uint8], source: SpatialImage) -> nib.Nifti1Image:
    """A binary mask, uint8 in the source's axes and shape, as an image: see :func:`image_like`."""
    image = image_like(mask, source, b"mask")
    image.header["cal_max"] = 1
    return image


def read_mask(path: Path) -> NDArray[np.uint8]:
    """The voxels of a mask that was written here.

    Raises
    ------
    VolumeError
        If it cannot be read.
    """
    try:
        return np.asarray(load_image(path).dataobj, np.uint8)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise VolumeError(f"{path} is damaged: {error}") from error


def image_like(array: NDArray[np.generic], source: SpatialImage, what: bytes) -> nib.Nifti1Image:
    """An image with the source's affine, form codes and units.

    Parameters
    ----------
    array : in the source's axes and shape
    what : ends the header's description, at most 60 bytes
    """
    kind: type[nib.Nifti1Image] = nib.Nifti1Image
    if isinstance(source, nib.Nifti2Image):
        kind = nib.Nifti2Image
    image = kind(array, source.affine)
    if isinstance(source, nib.Nifti1Pair):
        for name in _PLACING_FIELDS:
            image.header[name] = source.header[name]
    image.header["descrip"] = _OURS + what
    return image


def save_image(image: nib.Nifti1Image, path: Path) -> None:
    """Write an image, whole or not at all."""
    with whole_file(path) as temporary:
        nib.save(image, temporary)


def unit_mm(image: SpatialImage) -> float:
    """Millimetres in one spatial unit of the header; 1 where it says nothing known."""
    if not isinstance(image, nib.Nifti1Pair):
        return 1.0
    try:
        unit = image.header.get_xyzt_units()[0]
    except KeyError:  # a code that no standard knows
        return 1.0
    return _UNITS_MM.get(unit, 1.0)


# Header and extensions: those of scanners and tools take some hundred kilobytes at most.
_MAX_HEADER_BYTES, _SMALLEST_BYTES = 2**22, 352
_SUFFIXES = (".nii", ".hdr", ".img")
_COMPRESSED = (".gz", ".bz2", ".zst")
_KINDS = (
    nib.Nifti1Pair, nib.Nifti1Image, nib.Nifti2Pair, nib.Nifti2Image, Spm2AnalyzeImage,
    Spm99AnalyzeImage, nib.AnalyzeImage,
)  # fmt: skip


class _Bounded(FileHolder):
    """A file whose beginning is all that a parser gets to see."""

    def get_prepare_fileobj(self, *args: Any, **kwargs: Any) -> Any:
        head = BytesIO()
        # In pieces that grow, so that little is lost before a break: what lies behind it may be
        # voxels, and who reads those will tell.
        with ImageOpener(str(self.filename)) as file, suppress(EOFError, OSError, zlib.error):
            while (size := head.tell()) < _MAX_HEADER_BYTES:
                if not head.write(file.read(max(size, _SMALLEST_BYTES))):
                    break
        head.seek(0)
        return head


def is_nifti_name(path: Path) -> bool:
    """Whether a file is called as NIfTI and Analyze images are."""
    name = path.name.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    return name.endswith(_SUFFIXES)


def open_header(path: Path) -> SpatialImage:
    """The image of a file, with its voxels unread.

    Raises
    ------
    VolumeError
        If it is no NIfTI or Analyze image.
    """
    try:
        return _open(path)
    except VolumeError:
        raise
    except Exception as error:  # of a damaged header, a parser may raise anything
        raise VolumeError(
            f"{path} is not a readable NIfTI image: {one_line(error, QUOTED)}"
        ) from error


def _open(path: Path) -> SpatialImage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a parser finds odd, and mends
        if path.stat().st_size == 0:
            raise VolumeError(f"{path} is not a readable NIfTI image: it is empty")
        sniff = None
        for kind in _KINDS:
            fits, sniff = kind.path_maybe_image(str(path), sniff)
            if fits:
                files = kind.filespec_to_file_map(str(path))
                bounded = {key: _Bounded(part.filename) for key, part in files.items()}
                image: SpatialImage = kind.from_file_map(bounded)
                return image
    raise VolumeError(f"{path} is not a readable NIfTI image: its header is of another kind")


def image_voxel_mm(image: SpatialImage) -> tuple[float, ...]:
    """Spacings along the image's own axes, in millimetres."""
    return tuple(float(mm) for mm in voxel_sizes(image.affine) * unit_mm(image))


def voxel_ml(voxel_mm: tuple[float, float, float]) -> float:
    """The volume of a voxel, in millilitres, from its spacings."""
    return float(np.prod(voxel_mm)) / 1000
