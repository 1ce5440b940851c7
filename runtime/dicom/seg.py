"""A mask as a DICOM SEG: binary, on the frames of the series it was made from."""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import QUOTED, OutputError, VolumeError, one_line
from ..util.files import whole_file, writable_folder
from ..util.optional import require
from .headers import UNREADABLE, silenced_pydicom, value
from .series import Series

if TYPE_CHECKING:
    from pydicom import Dataset

_MAKER = "anofpdm"
_SERIES_NUMBER = 9001
# What highdicom asks of a source image of any kind.
_BLANK = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
# Of the source image's root, beside the patient and the study: what the frames are derived from.
_COPIED = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "Rows", "Columns", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod", "Manufacturer",
    "ManufacturerModelName",
)  # fmt: skip


def check_seg(path: Path, series: Series) -> None:
    """Refuse, before anything is computed, a SEG that could not be written.

    Raises
    ------
    OutputError
        If ``path`` does not end in .dcm, is one of the source images, or cannot be written.
    VolumeError
        If the series lacks what a SEG has to name.
    MissingExtraError
        If highdicom is not installed.
    """
    require("highdicom", "dicom")
    if path.suffix.lower() != ".dcm":
        raise OutputError(f"cannot write {path}: name it .dcm")
    writable_folder(path)
    for file in series.files:
        if path.exists() and file.exists() and path.samefile(file):
            raise OutputError(f"cannot write {path}: it is the input; choose another name")
    with silenced_pydicom():
        headers = list({plane.header.path: plane.header for plane in series.planes}.values())
        uids = [header.text("SOPInstanceUID") for header in headers]
        if len(set(uids)) < len(uids) or not all(uids):
            raise VolumeError(
                f"images of {series.files[0].parent} share a SOPInstanceUID, or have none: a DICOM "
                "SEG could not tell them apart; write the mask as NIfTI instead"
            )
        for header in headers:
            for needed in ("StudyInstanceUID", "FrameOfReferenceUID"):
                if not header.text(needed):
                    raise VolumeError(
                        f"{header.path} lacks {needed}, which a DICOM SEG refers to: write the "
                        "mask as NIfTI instead"
                    )


def write_seg(
    path: Path,
    mask: NDArray[np.uint8],
    series: Series,
    *,
    model: str,
    version: str,
    bundle_sha256: str,
    series_description: str = "anofpdm anomaly mask (research)",
    when: datetime | None = None,
) -> None:
    """Write a mask as a DICOM SEG, whole or not at all.

    Every slice gets a frame, empty ones too: they were looked at. Patient and study are those of
    the first source image. UIDs follow from the mask, the source images, the model and its
    version: the same run gives the same UIDs, and with ``when`` the same bytes.

    Parameters
    ----------
    mask : (i, j, k) 0 or 1, in the axes and shape of ``series.image``; may be empty
    model, version : what made it, at most 64 characters are kept of each
    bundle_sha256 : fingerprint of the model, at most 64 characters
    when : of its content, local time; None for now

    Raises
    ------
    OutputError, VolumeError, MissingExtraError
        As :func:`check_seg`; or if the mask does not fit the series.
    """
    check_seg(path, series)
    if mask.shape != series.image.shape or not np.isin(mask, (0, 1)).all():
        raise VolumeError(
            f"a mask of shape {mask.shape} is given: it has to be 0 and 1, of the series' shape "
            f"{series.image.shape}"
        )
    moment = (when or datetime.now()).replace(microsecond=0)
    with silenced_pydicom():
        try:
            made = _segmentation(mask, series, model, version, bundle_sha256, series_description)
            _add_patient_and_study(made, series.references[0])
            _set_moment(made, moment)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise VolumeError(
                f"no DICOM SEG can be made of {series.files[0].parent} "
                f"({one_line(error, QUOTED)}): write the mask as NIfTI instead"
            ) from error
        with whole_file(path) as temporary:
            made.save_as(temporary)


def _segmentation(
    mask: NDArray[np.uint8],
    series: Series,
    model: str,
    version: str,
    bundle_sha256: str,
    series_description: str,
) -> Any:
    hd: Any = require("highdicom", "dicom")
    codes: Any = require("pydicom.sr.codedict", "dicom").codes
    frames = np.ascontiguousarray(mask.T, np.uint8)  # (k, j, i): slices, rows, columns
    if series.enhanced:
        # In the order in which its file stores them.
        frames = frames[np.argsort(series.frames)]
    identity = (
        hashlib.sha256(np.packbits(frames).tobytes()).hexdigest(),
        *(str(source.SOPInstanceUID) for source in series.references),
        *(model, version, bundle_sha256, series_description),
    )
    version = _text(version) or "unknown"
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Anomaly",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=_text(model) or _MAKER,
            version=version,
            family=codes.DCM.ArtificialIntelligence,
            source=_MAKER,
            parameters={"bundle_sha256": _text(bundle_sha256)},
        ),
        anatomic_regions=[codes.SCT.Brain],
    )
    made = hd.seg.Segmentation(
        source_images=_sources(series),
        pixel_array=frames,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=_uid("series", identity),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=_uid("instance", identity),
        instance_number=1,
        manufacturer=_MAKER,
        manufacturer_model_name=_text(model) or _MAKER,
        software_versions=version,
        device_serial_number=_text(bundle_sha256) or "unknown",
        series_description=_text(series_description),
        content_label="ANOMALY",
        content_creator_name="",
        content_description="Anomaly mask. For research, not for diagnosis.",
        omit_empty_frames=False,
    )
    dimensions = _uid("dimensions", identity)
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    return made


def _sources(series: Series) -> "list[Dataset]":
    """Stand-ins for the source images: what a SEG has of them, without a patient.

    highdicom compares orientations as texts, wants them shared by all frames, and quotes names in
    warnings; scanners are less strict.
    """
    pydicom: Any = require("pydicom", "dicom")
    sources: list[Dataset] = []
    for reference in series.references:
        source: Dataset = pydicom.Dataset()
        for keyword in _BLANK:
            setattr(source, keyword, "")
        for keyword in _COPIED:
            value_of = value(reference, keyword)
            if value_of is not None:
                setattr(source, keyword, value_of)
        sources.append(source)
    first = series.planes[0]
    orientation = pydicom.Dataset()
    orientation.ImageOrientationPatient = _decimals([*first.across, *first.down])
    measures = pydicom.Dataset()
    measures.PixelSpacing = _decimals([first.down_mm, first.across_mm])
    distance_mm = float(np.linalg.norm(series.image.affine[:3, 2]))
    (measures.SliceThickness,) = _decimals([first.thickness_mm or distance_mm])
    if not series.enhanced:
        for source, plane in zip(sources, series.planes, strict=True):
            source.update(orientation)
            source.update(measures)
            source.ImagePositionPatient = _decimals(plane.position)
        return sources
    shared = pydicom.Dataset()
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    groups = []
    for plane in sorted(series.planes, key=lambda plane: plane.frame):
        position = pydicom.Dataset()
        position.ImagePositionPatient = _decimals(plane.position)
        group = pydicom.Dataset()
        group.PlanePositionSequence = [position]
        groups.append(group)
    sources[0].SharedFunctionalGroupsSequence = [shared]
    sources[0].PerFrameFunctionalGroupsSequence = groups
    sources[0].NumberOfFrames = len(groups)
    return sources


def _add_patient_and_study(made: Any, reference: "Dataset") -> None:
    """Copy whose image it is, leaving out what is malformed."""
    pydicom: Any = require("pydicom", "dicom")
    readable = pydicom.Dataset()
    for tag in list(reference.keys()):
        try:
            readable.add(reference[tag])
        except UNREADABLE:
            continue
    # Texts are written as the source's are.
    if "SpecificCharacterSet" in readable:
        made.SpecificCharacterSet = readable.SpecificCharacterSet
    made.copy_patient_and_study_information(readable)


def _set_moment(made: Any, moment: datetime) -> None:
    """Put one time where highdicom puts several."""
    date, clock = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S")
    made.ContentDate, made.ContentTime = date, clock
    made.InstanceCreationDate, made.InstanceCreationTime = date, clock
    for item in made.get("ContributingEquipmentSequence", ()):
        if str(item.get("Manufacturer") or "").startswith("Highdicom"):
            item.ContributionDateTime = date + clock


def _uid(what: str, identity: tuple[str, ...]) -> str:
    uid = require("pydicom.uid", "dicom")
    # Lengths keep ("a", "bc") from being ("ab", "c").
    return str(uid.generate_uid(entropy_srcs=[what, *(f"{len(text)}:{text}" for text in identity)]))


def _decimals(values: Any) -> list[Any]:
    ds = require("pydicom.valuerep", "dicom").DSfloat
    return [ds(float(number), auto_format=True) for number in values]


def _text(text: str) -> str:
    """At most 64 ASCII characters, which a LO holds whatever the character set."""
    return "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in text)[:64].strip()
