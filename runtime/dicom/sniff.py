"""Which files are DICOM, by their mark: cheap, and without pydicom."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_NIFTI = (".nii", ".nii.gz", ".hdr", ".img")


def is_dicom(path: Path) -> bool:
    """Whether this is a file with DICOM's mark, ``DICM`` after 128 bytes."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def is_dicom_folder(path: Path) -> bool:
    """Whether this is a folder with a DICOM file in it, at any depth, and no NIfTI at its top.

    A case of NIfTI files that keeps its DICOM files in a folder below is a case of NIfTI files.
    """
    if not path.is_dir():
        return False
    if any(file.name.endswith(_NIFTI) and file.is_file() for file in path.iterdir()):
        return False
    return any(is_dicom(file) for file in files_below(path))


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and the folders below it, links to folders not followed, by name."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(where, name)
            if file.is_file():
                yield file
