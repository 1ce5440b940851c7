"""Where a volume comes from: NIfTI files, one a modality, or a DICOM series."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nibabel.affines import voxel_sizes
from nibabel.spatialimages import SpatialImage

from ..dicom.detect import files_below, is_dicom
from ..dicom.seg import check_seg
from ..dicom.series import Series, read_series
from ..errors import OutputError, VolumeError
from ..util.files import sha256
from ..volume.nifti import load_image, made_here, unit_mm


@dataclass(frozen=True)
class Source:
    """``images``: one a modality, or one with all of them; ``paths``: what was named, for
    messages; ``inputs``: see :func:`described`; ``series``: where the images are a DICOM series."""

    images: tuple[SpatialImage, ...]
    paths: tuple[Path, ...]
    inputs: tuple[dict[str, Any], ...]
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
        if path.exists() and path.resolve().is_relative_to(self.paths[0].resolve()):
            raise OutputError(
                f"cannot write {path}: it lies among the input's; choose another name"
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
        return Source((series.image,), tuple(paths), described(paths), series)
    if series_uid:
        raise VolumeError(f"{paths[0]} is no DICOM folder: --series goes with one")
    images = tuple(load_image(path) for path in paths)
    for path, image in zip(paths, images, strict=True):
        if made_here(image):
            raise VolumeError(f"{path} is a mask or a map of anofpdm: name the scan")
    return Source(images, tuple(paths), described(paths))


def taken_on(series: Series) -> datetime:
    """When its images were made, as far as they say: midnight of the study's day, or of 1970."""
    date = str(series.references[0].get("StudyDate") or "")
    try:
        return datetime.strptime(date, "%Y%m%d")
    except ValueError:
        return datetime(1970, 1, 1)


def described(paths: Sequence[Path]) -> tuple[dict[str, Any], ...]:
    """Each input as JSON values: its name, the SHA-256 of its files by name, and, but for a DICOM
    series, shape and voxel size. A series has one fingerprint, since its files are often named
    after patients.

    Raises
    ------
    VolumeError
        If a file is not there, or is no image.
    """
    return tuple({"name": path.name, **_described(path)} for path in paths)


def _described(path: Path) -> dict[str, Any]:
    if path.is_dir():
        held = sorted(sha256(file) for file in files_below(path))
        digest = hashlib.sha256("".join(held).encode()).hexdigest()
        return {"files_sha256": {f"{len(held)} files": digest}}
    if is_dicom(path):
        return {"files_sha256": {path.name: sha256(path)}}
    image = load_image(path)
    named = {Path(one.filename) for one in image.file_map.values() if one.filename}
    return {
        "files_sha256": {file.name: sha256(file) for file in sorted(named) if file.is_file()},
        "shape": [int(n) for n in image.shape],
        "voxel_mm": [float(mm) for mm in voxel_sizes(image.affine) * unit_mm(image)],
    }
