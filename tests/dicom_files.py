"""DICOM series made from arrays: the tests' own writer, which knows nothing of the reader."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from nibabel.orientations import apply_orientation, inv_ornt_aff
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
PATIENT = ("Zebra^Quagga", "ID-4711", "19610203")


def new_uid() -> str:
    """Short enough for instances to append their number."""
    return generate_uid()[:56].rstrip(".")


@dataclass
class Acquisition:
    """How a volume is cut and stored."""

    axes: tuple = (0, 1, 2)  # which array axes are columns, rows and slices
    flips: tuple = (1, 1, 1)  # -1 where one runs backwards
    slope: float | None = None  # of stored numbers, None where none is written
    intercept: float = 0.0  # of stored numbers
    dtype: type = np.int16  # of stored numbers
    study: str = field(default_factory=new_uid)  # UID
    series: str = field(default_factory=new_uid)  # UID
    frame_of_reference: str = field(default_factory=new_uid)  # UID


AXIAL, SAGITTAL, CORONAL = (
    Acquisition((0, 1, 2), (-1, -1, 1)), Acquisition((1, 2, 0), (-1, -1, 1)),
    Acquisition((0, 2, 1), (-1, -1, -1)),
)  # fmt: skip


def number(value: float) -> pydicom.valuerep.DSfloat:
    return pydicom.valuerep.DSfloat(float(value), auto_format=True)


def cut(stored, affine, how: Acquisition):
    """Pixels (slice, row, column) of an array (X, Y, Z), and where they lie, in LPS.

    Returns
    -------
    pixels, positions (n, 3), across (3,), down (3,), spacing (between rows, between columns), step
    """
    orientation = np.empty((3, 2))
    for place, axis in enumerate(how.axes):
        orientation[axis] = place, how.flips[place]
    turned = apply_orientation(stored, orientation)
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine @ inv_ornt_aff(orientation, stored.shape)
    columns, rows, slices = matrix[:3, 0], matrix[:3, 1], matrix[:3, 2]
    positions = [matrix[:3, 3] + k * slices for k in range(turned.shape[2])]
    spacing = (np.linalg.norm(rows), np.linalg.norm(columns))
    pixels = np.transpose(turned, (2, 1, 0))
    return (
        pixels, positions, columns / spacing[1], rows / spacing[0], spacing, np.linalg.norm(slices),
    )  # fmt: skip


def write_series(folder: Path, stored, affine, how=AXIAL, change=None, seed=0, prefix="") -> Path:
    """Classic files, in random order under random names.

    ``change(dataset, k)``: called with every dataset before it is written; False leaves it out.
    """
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels, positions, across, down, spacing, step = cut(stored, affine, how)
    instances = rng.permutation(len(pixels)) + 1
    names = rng.permutation(len(pixels))
    for k, plane in enumerate(pixels):
        data = _dataset(MR, how, plane.shape, plane, f"{how.series}.{k + 1}")
        data.InstanceNumber = int(instances[k])
        data.ImagePositionPatient = [number(v) for v in positions[k]]
        data.ImageOrientationPatient = [number(v) for v in (*across, *down)]
        data.PixelSpacing = [number(v) for v in spacing]
        data.SliceThickness = number(step * 0.8)
        data.SpacingBetweenSlices = number(step)
        data.EchoTime = "90"
        if how.slope is not None:
            data.RescaleSlope, data.RescaleIntercept = number(how.slope), number(how.intercept)
        if change and change(data, k) is False:
            continue
        data.save_as(folder / f"{prefix}IM{names[k]:04d}", enforce_file_format=True)
    return folder


def write_enhanced(path: Path, stored, affine, how=AXIAL, change=None, shared=False, seed=0):
    """One file of all frames, in random order; orientation per frame unless ``shared``."""
    rng = np.random.default_rng(seed)
    pixels, positions, across, down, spacing, step = cut(stored, affine, how)
    order = rng.permutation(len(pixels))
    data = _dataset(
        ENHANCED_MR, how, pixels.shape[1:], np.ascontiguousarray(pixels[order]), f"{how.series}.1"
    )
    data.NumberOfFrames = len(pixels)
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [number(v) for v in (*across, *down)]
    measures.PixelSpacing = [number(v) for v in spacing]
    measures.SliceThickness = number(step * 0.8)
    common = Dataset()
    common.PixelMeasuresSequence = [measures]
    if shared:
        common.PlaneOrientationSequence = [orientation]
    data.SharedFunctionalGroupsSequence = [common]
    groups = []
    for k in order:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [number(v) for v in positions[k]]
        group.PlanePositionSequence = [position]
        if not shared:
            group.PlaneOrientationSequence = [orientation]
        if how.slope is not None:
            rescale = Dataset()
            rescale.RescaleSlope, rescale.RescaleIntercept = (
                number(how.slope), number(how.intercept),
            )  # fmt: skip
            group.PixelValueTransformationSequence = [rescale]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    if change:
        change(data)
    data.save_as(path, enforce_file_format=True)
    return path


def _dataset(kind, how, shape, pixels, instance) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, instance
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = kind, instance
    data.StudyInstanceUID, data.SeriesInstanceUID = how.study, how.series
    data.FrameOfReferenceUID = how.frame_of_reference
    data.Modality, data.Manufacturer, data.SeriesDescription = "MR", "Scanner Maker", "AX FLAIR"
    data.PatientName, data.PatientID, data.PatientBirthDate = PATIENT
    data.PatientSex, data.StudyDate, data.StudyTime = "O", "20200102", "030405"
    data.StudyID, data.AccessionNumber, data.StudyDescription = "S1", "A1", "Head"
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    data.Rows, data.Columns = shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = how.dtype().itemsize * 8
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(np.dtype(how.dtype).kind == "i")
    data.PixelData = np.ascontiguousarray(pixels, how.dtype).tobytes()
    data["PixelData"].VR = "OB" if data.BitsAllocated == 8 else "OW"
    return data
