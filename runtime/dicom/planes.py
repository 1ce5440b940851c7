"""Where the pixels of each frame lie in the patient, and what their numbers mean."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import VolumeError
from .headers import UNREADABLE, Header, value

if TYPE_CHECKING:
    from pydicom import Dataset

# What may distinguish two images at one position: (functional group of an enhanced file, keyword).
_DISTINGUISHING = (
    ("MREchoSequence", "EffectiveEchoTime"), ("", "EchoTime"), ("", "EchoNumbers"),
    ("FrameContentSequence", "TemporalPositionIndex"), ("", "TemporalPositionIdentifier"),
    ("MRDiffusionSequence", "DiffusionBValue"), ("", "DiffusionBValue"), ("", "InversionTime"),
    ("MRImageFrameTypeSequence", "FrameType"), ("", "ImageType"), ("", "AcquisitionNumber"),
)  # fmt: skip


@dataclass(frozen=True)
class Plane:
    """One frame, in DICOM's coordinates: LPS, millimetres."""

    header: Header  # of its file
    frame: int  # its number there, from 1
    position: NDArray[np.float64]  # (3,) centre of the first pixel
    across: NDArray[np.float64]  # (3,) unit vector along a row, to the next column
    down: NDArray[np.float64]  # (3,) unit vector along a column, to the next row
    across_mm: float  # distance between columns
    down_mm: float  # distance between rows
    thickness_mm: float | None  # None where the file does not say
    slope: float  # from stored numbers to values
    intercept: float  # the value of a stored 0

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) float64 unit vector in LPS, out of the plane."""
        normal = np.cross(self.across, self.down)
        return np.asarray(normal / np.linalg.norm(normal), np.float64)

    def difference_to(self, other: "Plane") -> str:
        """What an image at the same position differs in, by keyword."""
        same = self.header.get("SOPInstanceUID") == other.header.get("SOPInstanceUID")
        if same and not self.header.enhanced:
            return "the same image twice"
        for group, keyword in _DISTINGUISHING:
            values = []
            for plane in (self, other):
                if group:
                    item = _group(plane.header, plane.frame, group)
                    values.append(None if item is None else value(item, keyword))
                else:
                    values.append(plane.header.get(keyword))
            if values[0] != values[1]:
                return f"they differ in {keyword}"
        return "several acquisitions of one place"


def planes_of(header: Header) -> list[Plane]:
    """The frames of a file, in stored order.

    Raises
    ------
    VolumeError
        If their place in the patient is missing or unusable.
    """
    if not header.enhanced:
        if _count(header) != 1:
            raise VolumeError(
                f"{header.path} holds many frames without saying where each lies: export them as "
                "Enhanced MR, or one by one"
            )
        data = header.dataset
        return [_plane(header, 1, (data, data, data), data)]
    try:
        stored = len(header.dataset.PerFrameFunctionalGroupsSequence)
    except UNREADABLE as error:
        raise _lacking(header, "PerFrameFunctionalGroupsSequence") from error
    if stored != _count(header):
        raise VolumeError(
            f"{header.path} claims {_count(header)} frames and describes {stored}: it is damaged"
        )
    planes = []
    for frame in range(1, stored + 1):
        where = (
            _needed(header, frame, "PlanePositionSequence"),
            _needed(header, frame, "PlaneOrientationSequence"),
            _needed(header, frame, "PixelMeasuresSequence"),
        )
        rescale = _group(header, frame, "PixelValueTransformationSequence")
        planes.append(_plane(header, frame, where, rescale))
    return planes


def numbers(source: "Dataset", keyword: str, header: Header, count: int) -> NDArray[np.float64]:
    """Finite numbers, (count,) float64.

    Raises
    ------
    VolumeError
        If they are absent or something else.
    """
    number = value(source, keyword)
    if number is None:
        raise _lacking(header, keyword)
    try:
        array = np.atleast_1d(np.asarray(number, np.float64))
    except (TypeError, ValueError) as error:
        raise _lacking(header, keyword) from error
    if array.shape != (count,) or not np.isfinite(array).all():
        raise _lacking(header, keyword)
    return array


def _plane(
    header: Header,
    frame: int,
    where: "tuple[Dataset, Dataset, Dataset]",
    rescale: "Dataset | None",
) -> Plane:
    """``where``: what holds position, orientation and spacing."""
    position, orientation, measures = where
    cosines = numbers(orientation, "ImageOrientationPatient", header, 6)
    across, down = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    # Also false for lengths of 0.
    if not (np.allclose(lengths, 1, atol=1e-2) and abs(across @ down) < 1e-2):
        raise VolumeError(
            f"{header.path}: ImageOrientationPatient holds no right-angled axes; correct the header"
        )
    # Between rows first, between columns second (PS3.3, 10.7.1.3).
    down_mm, across_mm = numbers(measures, "PixelSpacing", header, 2)
    if not (down_mm > 0 and across_mm > 0):
        raise VolumeError(f"{header.path}: PixelSpacing is not positive; correct the header")
    slope, intercept = 1.0, 0.0
    if header.get("ModalityLUTSequence"):
        raise VolumeError(f"{header.path} has a table of values (ModalityLUTSequence): apply it")
    if rescale is not None and value(rescale, "RescaleSlope") is not None:
        slope = float(numbers(rescale, "RescaleSlope", header, 1)[0])
        intercept = float(numbers(rescale, "RescaleIntercept", header, 1)[0])
    if slope == 0:
        raise VolumeError(f"{header.path}: RescaleSlope is 0, which leaves no image; correct it")
    thickness_mm = None
    if value(measures, "SliceThickness") is not None:
        thickness_mm = float(numbers(measures, "SliceThickness", header, 1)[0])
    return Plane(
        header,
        frame,
        numbers(position, "ImagePositionPatient", header, 3),
        across / lengths[0],
        down / lengths[1],
        float(across_mm),
        float(down_mm),
        thickness_mm,
        slope,
        intercept,
    )


def _needed(header: Header, frame: int, name: str) -> "Dataset":
    group = _group(header, frame, name)
    if group is None:
        raise _lacking(header, name)
    return group


def _group(header: Header, frame: int, name: str) -> "Dataset | None":
    """A functional group of a frame, or else that of all frames."""
    try:
        per_frame = header.dataset.PerFrameFunctionalGroupsSequence[frame - 1]
        shared: Any = value(header.dataset, "SharedFunctionalGroupsSequence")
        for item in (per_frame, *(shared or ())):
            if value(item, name):
                group: Dataset = item[name].value[0]
                return group
    except UNREADABLE:
        pass
    return None


def _count(header: Header) -> int:
    """NumberOfFrames; 1 where it is absent."""
    if header.get("NumberOfFrames") is None:
        return 1
    return int(numbers(header.dataset, "NumberOfFrames", header, 1)[0])


def _lacking(header: Header, keyword: str) -> VolumeError:
    return VolumeError(
        f"{header.path} lacks a usable {keyword}: export the original images again from the "
        "scanner or archive"
    )
