"""Where a volume comes from: NIfTI files, one a modality, or a DICOM series."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nibabel.spatialimages import SpatialImage

from ..dicom.detect import files_below
from ..dicom.seg import check_seg
from ..dicom.series import Series, read_series
from ..errors import OutputError, VolumeError
from ..results import InputImage
from ..util.files import sha256
from ..volume.nifti import image_voxel_mm, is_own_output, load_image


@dataclass(frozen=True)
class Source:
    """An open volume."""

    images: tuple[SpatialImage, ...]  # one a modality, or one with all of them
    paths: tuple[Path, ...]  # as the user named them
    inputs: tuple[InputImage, ...]  # what results say of them
    series: Series | None = None  # where the images are a DICOM series

    @property
    def names(self) -> list[str]:
        """What messages call the images."""
        return [str(path) for path in self.paths]

    @property
    def notes(self) -> tuple[str, ...]:
        """Of reading them."""
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


def open_source(paths: Sequence[Path], dicom: bool, series_uid: str | None = None) -> Source:
    """Open NIfTI files, or the folder (or one file) of a DICOM series.

    Parameters
    ----------
    dicom : which of the two
    series_uid : of the series to read, where a folder holds several

    Raises
    ------
    VolumeError
        If it cannot be used.
    """
    if dicom:
        series = read_series(paths[0], series_uid)
        return Source((series.image,), tuple(paths), describe_inputs(paths, dicom), series)
    if series_uid:
        raise VolumeError(f"{paths[0]} is no DICOM folder: --series goes with one")
    images = tuple(load_image(path) for path in paths)
    for path, image in zip(paths, images, strict=True):
        if is_own_output(image):
            raise VolumeError(f"{path} is a mask or a map of anofpdm: name the scan")
    return Source(images, tuple(paths), describe_inputs(paths, dicom))


def study_date(series: Series) -> datetime:
    """Midnight of the study's day, or of 1970 where the series does not say."""
    date = str(series.references[0].get("StudyDate") or "")
    try:
        return datetime.strptime(date, "%Y%m%d")
    except ValueError:
        return datetime(1970, 1, 1)


def describe_inputs(paths: Sequence[Path], dicom: bool) -> tuple[InputImage, ...]:
    """Each input with the SHA-256 of its files. The files of a DICOM series have one fingerprint
    in all, since they are often named after patients.

    Raises
    ------
    VolumeError
        If a file is not there, or is no image.
    """
    return tuple(_dicom_input(path) if dicom else _nifti_input(path) for path in paths)


def _dicom_input(path: Path) -> InputImage:
    if not path.is_dir():
        return InputImage(path.name, {path.name: sha256(path)})
    hashes = sorted(sha256(file) for file in files_below(path))
    fingerprint = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return InputImage(path.name, {f"{len(hashes)} files": fingerprint})


def _nifti_input(path: Path) -> InputImage:
    image = load_image(path)
    files = {Path(part.filename) for part in image.file_map.values() if part.filename}
    hashes = {file.name: sha256(file) for file in sorted(files) if file.is_file()}
    shape = tuple(int(n) for n in image.shape)
    return InputImage(path.name, hashes, shape, image_voxel_mm(image))
