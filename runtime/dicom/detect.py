"""Which files are DICOM, by their mark: cheap, and without pydicom."""

import os
from collections.abc import Iterator
from pathlib import Path


def is_dicom(path: Path) -> bool:
    """Whether this is a file with DICOM's mark, ``DICM`` after 128 bytes."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and the folders below it, links to folders not followed, by name."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(where, name)
            if file.is_file():
                yield file
