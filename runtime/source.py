"""Where a volume comes from: NIfTI files, one a modality, or a DICOM series."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nibabel.spatialimages import SpatialImage

from .dicom.seg import check_seg
from .dicom.series import Series, read_series
from .dicom.sniff import files_below, is_dicom
from .errors import VolumeError
from .files import sha256
from .volume import load_image


@dataclass(frozen=True)
class Source:
    """``images``: one a modality, or one with all of them; ``paths``: what was named, for
    messages; ``series``: where the images are a DICOM series."""

    images: tuple[SpatialImage, ...]
    paths: tuple[Path, ...]
    series: Series | None = None

    @property
    def names(self) -> list[str]:
        """What messages call the images."""
        return [str(path) for path in self.paths]

    @property
    def notes(self) -> tuple[str, ...]:
        """What reading them came with."""
        return self.series.notes if self.series else ()

    def check_seg(self, path: Path) -> Series:
        """The series, if a DICOM SEG of it can be written to ``path``; see
        :func:`anofpdm.runtime.dicom.seg.check_seg`."""
        if self.series is None:
            raise VolumeError(
                f"{self.paths[0]} is no DICOM series: a DICOM SEG refers to DICOM images; ask for "
                "none"
            )
        check_seg(path, self.series)
        return self.series


def open_source(paths: Sequence[Path], series_uid: str | None = None) -> Source:
    """Open files, or the folder (or one file) of a DICOM series.

    Parameters
    ----------
    series_uid : of the series to take, where a folder holds several

    Raises
    ------
    VolumeError
        If it cannot be used.
    """
    if len(paths) == 1 and (paths[0].is_dir() or is_dicom(paths[0])):
        series = read_series(paths[0], series_uid)
        return Source((series.image,), tuple(paths), series)
    if series_uid:
        raise VolumeError(f"{paths[0]} is no DICOM folder: --series goes with one")
    return Source(tuple(load_image(path) for path in paths), tuple(paths))


def taken_on(series: Series) -> datetime:
    """When its images were made, as far as they say: midnight of the study's day, or of 1970."""
    date = str(series.references[0].get("StudyDate") or "")
    try:
        return datetime.strptime(date, "%Y%m%d")
    except ValueError:
        return datetime(1970, 1, 1)


def fingerprints(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 by name, of all files that the paths stand for: a header's and its voxels', too; one
    for a whole DICOM series, whose files are often named after patients."""
    found: dict[str, str] = {}
    for path in paths:
        if path.is_dir():
            held = sorted(sha256(file) for file in files_below(path))
            digest = hashlib.sha256("".join(held).encode()).hexdigest()
            found[f"{len(held)} files"] = digest
        elif is_dicom(path):
            found[path.name] = sha256(path)
        else:
            named = (one.filename for one in load_image(path).file_map.values())
            files = sorted({Path(name) for name in named if name})
            found |= {file.name: sha256(file) for file in files if file.is_file()}
    return found
