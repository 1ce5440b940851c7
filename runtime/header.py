"""Headers of NIfTI and Analyze files, parsed from a bounded part of the file.

NIfTI headers may be followed by extensions that say how long they are. Of what such a field says,
a library reads all there is, and in a compressed file that may be any amount.
"""

from __future__ import annotations

import warnings
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
from nibabel.fileholders import FileHolder
from nibabel.openers import ImageOpener
from nibabel.spatialimages import SpatialImage
from nibabel.spm2analyze import Spm2AnalyzeImage
from nibabel.spm99analyze import Spm99AnalyzeImage

from .errors import VolumeError

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
        raise VolumeError(f"{path} is not a readable NIfTI image: {first_line(error)}") from error


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
                bounded = {key: _Bounded(one.filename) for key, one in files.items()}
                image: SpatialImage = kind.from_file_map(bounded)
                return image
    raise VolumeError(f"{path} is not a readable NIfTI image: its header is of another kind")


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
