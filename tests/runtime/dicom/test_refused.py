"""DICOM that must not be segmented: one line each, with what to do and without the patient."""

import logging
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import AXIAL, PATIENT, write_enhanced, write_series
from pydicom.uid import JPEGLosslessSV1
from support import head

from anofpdm.runtime.dicom import read_series
from anofpdm.runtime.errors import MissingExtraError, VolumeError

AFFINE = nib.affines.from_matvec(np.diag([7.5, 6.0, 5.0]), [-80, -100, -20])


def values():
    return np.rint(head()).astype(np.int16)


def refused(path, match, series_uid=None):
    with pytest.raises(VolumeError, match=match) as caught:
        read_series(path, series_uid)
    message = str(caught.value)
    assert "\n" not in message
    assert ":" in message or ";" in message, "no repair"
    for secret in (*PATIENT, "Zebra", "4711"):
        assert secret not in message
    return message


def at(slices, **changes):
    """A change of some slices."""

    def change(data, k):
        if k in slices:
            for keyword, value in changes.items():
                if value is None:
                    delattr(data, keyword)
                else:
                    setattr(data, keyword, value)

    return change


ALL = range(100)
TILTED = [1, 0, 0, 0, 0.8, 0.6]


def drop(*slices):
    return lambda data, k: k not in slices


def shift(data, k):
    x, y, z = data.ImagePositionPatient
    data.ImagePositionPatient = [x + 2 * k, y, z]


def stretch(data, k):
    x, y, z = data.ImagePositionPatient
    data.ImagePositionPatient = [x, y, f"{z + 0.02 * k * k:.4f}"]


def smaller(data, k):
    if k == 4:
        data.Rows -= 1


def compressed(uid):
    def change(data, k):
        data.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
        data["PixelData"].VR = "OB"
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = uid

    return change


SERIES = {
    "gap": (drop(6), r"10\.00 mm apart at .* mm along the slice normal, elsewhere 5\.00 mm"),
    "two gaps": (drop(2, 6), "slices are missing, or uneven"),
    "one slice": (drop(*range(1, 100)), "one slice"),
    "uneven": (stretch, "distance changes slowly"),
    "leaning": (shift, "shifted against each other"),
    "localizer": (at([3], ImageOrientationPatient=TILTED), "2 orientations, as a localizer"),
    "spacing": (at([3], PixelSpacing=[6, 7.4]), "different PixelSpacing"),
    "size": (smaller, "different sizes"),
    "frames of reference": (at([3], FrameOfReferenceUID="1.2.3"), "different FrameOfReferenceUID"),
    "no position": (at([3], ImagePositionPatient=None), "lacks a usable ImagePositionPatient"),
    "no orientation": (at([3], ImageOrientationPatient=None), "usable ImageOrientationPatient"),
    "no spacing": (at([3], PixelSpacing=None), "lacks a usable PixelSpacing"),
    "no rows": (at([3], Rows=None), "lacks a usable Rows"),
    "short position": (at([3], ImagePositionPatient=[1, 2]), "usable ImagePositionPatient"),
    "empty position": (at([3], ImagePositionPatient=""), "usable ImagePositionPatient"),
    "zero axes": (at(ALL, ImageOrientationPatient=[0] * 6), "right-angled"),
    "skewed axes": (at(ALL, ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0]), "right-angled"),
    "zero spacing": (at(ALL, PixelSpacing=[0, 6]), "not positive"),
    "zero slope": (at([3], RescaleSlope=0, RescaleIntercept=0), "RescaleSlope is 0"),
    "endless slope": (at([3], RescaleSlope="1e39", RescaleIntercept=0), "values infinite"),
    "no intercept": (at([3], RescaleSlope=2), "RescaleIntercept"),
    "inverted": (at(ALL, PhotometricInterpretation="MONOCHROME1"), "convert it to MONOCHROME2"),
    "colour": (at(ALL, PhotometricInterpretation="RGB", SamplesPerPixel=3), "not monochrome"),
    "odd bits": (at(ALL, BitsAllocated=12), "bits"),
    "high bit": (at(ALL, BitsStored=12, HighBit=15), "bits"),
    "claims": (at([3], Rows=60000, Columns=60000), "truncated"),
    "many frames": (at([3], NumberOfFrames=2), "many frames without saying"),
    "CT": (
        at(ALL, SOPClassUID=pydicom.uid.CTImageStorage),
        "no MR image: 10 CT Image",
    ),
    "JPEG": (compressed(JPEGLosslessSV1), "pip install pylibjpeg"),
    "unknown syntax": (compressed("1.2.3.4.5"), "TransferSyntaxUID|cannot be decoded"),
}  # fmt: skip


@pytest.mark.parametrize("name", SERIES)
def test_series_that_are_no_stack(tmp_path, name):
    change, message = SERIES[name]
    write_series(tmp_path / "series", values(), AFFINE, AXIAL, change)
    refused(tmp_path / "series", message)


def test_the_place_of_a_gap_is_named(tmp_path):
    write_series(tmp_path / "series", values(), AFFINE, AXIAL, drop(6))
    # Slice 5 is the last one before the gap: z = -20 + 5 * 5 mm.
    refused(tmp_path / "series", r"at 5\.0 mm along")


DUPLICATES = {
    "echoes": (at(ALL, EchoTime="120"), "differ in EchoTime"),
    "times": (at(ALL, TemporalPositionIdentifier="2"), "differ in TemporalPositionIdentifier"),
    "phase": (at(ALL, ImageType=["ORIGINAL", "PRIMARY", "P", "ND"]), "differ in ImageType"),
    "repeated": (at([]), "several acquisitions of one place"),
}


@pytest.mark.parametrize("name", DUPLICATES)
def test_several_images_of_one_position(tmp_path, name):
    change, message = DUPLICATES[name]

    def again(data, k):
        change(data, k)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k}"

    write_series(tmp_path, values(), AFFINE, AXIAL, prefix="a")
    write_series(tmp_path, values(), AFFINE, AXIAL, again, prefix="b")
    refused(tmp_path, rf"several images at one position, -20\.0 mm .*{message}.*: give one")


def test_the_same_file_twice(tmp_path):
    folder = write_series(tmp_path / "series", values(), AFFINE)
    (folder / "copy").write_bytes((folder / "IM0003").read_bytes())
    refused(folder, "the same image twice")


def test_several_series(tmp_path):
    names = ["AX FLAIR", "a description that is too long to be shown\nwhole"]
    for number, name in enumerate(names):
        how = replace(AXIAL, series=f"1.2.3{number}.99999999")
        change = at(ALL, SeriesDescription=name)
        write_series(tmp_path, values(), AFFINE, how, change, prefix=str(number))
    message = refused(tmp_path, "holds 2 series")
    assert "...0.99999999 'AX FLAIR', 10 images" in message
    assert "...1.99999999 'a description that is too lon...', 10 images" in message
    assert "choose one by its UID or the end shown, with --series" in message
    assert read_series(tmp_path, "0.99999999").uid == "1.2.30.99999999"
    refused(tmp_path, "several with a UID that ends in '99999999'", "99999999")
    refused(tmp_path, "none with a UID that ends in '5'", "5")


def test_an_unknown_series_of_a_single_one(tmp_path):
    write_series(tmp_path, values(), AFFINE, replace(AXIAL, series="1.2.3"))
    refused(tmp_path, "none with a UID that ends in '4'", "4")


def test_places_without_images(tmp_path):
    with pytest.raises(VolumeError, match="does not exist"):
        read_series(tmp_path / "nothing")
    refused(tmp_path, "holds no DICOM image; name the folder")
    (tmp_path / "junk").write_bytes(b"junk")
    refused(tmp_path, "holds no DICOM image; name the folder")
    refused(tmp_path / "junk", "is not a DICOM file: it lacks")


def test_one_file_of_a_series(tmp_path):
    folder = write_series(tmp_path / "series", values(), AFFINE)
    refused(next(folder.iterdir()), "one slice of a series: name the folder")


@pytest.mark.parametrize("form", ["classic", "enhanced"])
def test_truncated_files(tmp_path, form):
    if form == "classic":
        path = write_series(tmp_path / "series", values(), AFFINE)
        file = path / "IM0004"
    else:
        path = file = write_enhanced(tmp_path / "x.dcm", values(), AFFINE)
    whole = file.read_bytes()
    for length in (132, 140, 250, 300, 500, 700, len(whole) // 2, len(whole) - 900, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(path, "truncated|damaged|lacks a usable|no MR image")
    file.write_bytes(whole)
    assert read_series(path).image.shape == (24, 28, 10)


def test_pixels_that_are_cut_though_the_file_is_long_enough(tmp_path):
    """A long header hides that pixels are missing."""

    def change(data, k):
        data.add_new(0x00291010, "OB", b"\0" * 10000)

    folder = write_series(tmp_path / "series", values(), AFFINE, AXIAL, change)
    file = folder / "IM0004"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, "pixels are truncated or damaged")


def test_compressed_pixels_that_claim_too_much(tmp_path):
    def change(data, k):
        data.compress(pydicom.uid.RLELossless)
        if k == 4:
            data.Rows = data.Columns = 65535

    write_series(tmp_path / "series", values(), AFFINE, AXIAL, change)
    refused(tmp_path / "series", "claims 8589672450 bytes of pixels in")


ENHANCED = {
    "frames": (lambda d: setattr(d, "NumberOfFrames", 9), "claims 9 frames and describes 10"),
    "groups": (
        lambda d: delattr(d, "PerFrameFunctionalGroupsSequence"),
        "lacks a usable PerFrameFunctionalGroupsSequence",
    ),
    "position": (
        lambda d: delattr(d.PerFrameFunctionalGroupsSequence[2], "PlanePositionSequence"),
        "lacks a usable PlanePositionSequence",
    ),
    "measures": (
        lambda d: delattr(d, "SharedFunctionalGroupsSequence"),
        "lacks a usable PixelMeasuresSequence",
    ),
}


@pytest.mark.parametrize("name", ENHANCED)
def test_enhanced_files_that_do_not_say_where(tmp_path, name):
    change, message = ENHANCED[name]
    refused(write_enhanced(tmp_path / "x.dcm", values(), AFFINE, change=change), message)


def test_echoes_in_an_enhanced_file(tmp_path):
    def change(data):
        groups = list(data.PerFrameFunctionalGroupsSequence)
        for time, group in enumerate(groups):
            echo = pydicom.Dataset()
            echo.EffectiveEchoTime = 10.0 * time
            group.MREchoSequence = [echo]
        groups[3].PlanePositionSequence = groups[4].PlanePositionSequence

    path = write_enhanced(tmp_path / "x.dcm", values(), AFFINE, change=change)
    refused(path, "differ in EffectiveEchoTime")


def test_several_enhanced_files(tmp_path):
    write_enhanced(tmp_path / "a.dcm", values(), AFFINE)
    write_enhanced(tmp_path / "b.dcm", values(), AFFINE)
    refused(tmp_path, "2 files of one series.*: name one multi-frame file")


def test_damaged_bytes_end_in_one_line_or_in_a_series(tmp_path):
    folder = write_series(tmp_path / "series", values()[:, :, :2], AFFINE)
    enhanced = write_enhanced(tmp_path / "x.dcm", values()[:, :, :2], AFFINE)
    rng = np.random.default_rng(0)
    refusals = 0
    for path, file in ((folder, folder / "IM0000"), (enhanced, enhanced)):
        whole = file.read_bytes()
        header = len(whole) - 2 * 24 * 28 * (1 if path is folder else 2)
        for _ in range(150):
            damaged = bytearray(whole)
            for place in rng.integers(132, header, rng.integers(1, 6)):
                damaged[place] = rng.integers(256)
            file.write_bytes(damaged)
            message = ""
            try:
                read_series(path)
            except VolumeError as error:
                message = str(error)
            refusals += bool(message)
            assert "\n" not in message
            assert "Zebra" not in message
    assert 100 < refusals < 300


def test_pydicom_is_kept_quiet(tmp_path, recwarn, caplog):
    """Its warnings quote values, which may be a patient's."""

    def change(data, k):
        data.SpecificCharacterSet = "ISO_IR 192"
        data.PatientBirthDate = "ID-4711, 3.2.1961"
        data.StudyInstanceUID = "ID-4711"

    with pydicom.config.disable_value_validation():
        folder = write_series(tmp_path / "series", values(), AFFINE, AXIAL, change)
    for file in folder.iterdir():
        whole = file.read_bytes()
        # A character set that there is none of.
        assert whole.count(b"CS\x0a\x00ISO_IR 192") == 1
        file.write_bytes(whole.replace(b"ISO_IR 192", b"ISO_IR 999"))
    recwarn.clear()
    caplog.set_level(logging.DEBUG)
    series = read_series(tmp_path / "series")
    assert not recwarn.list
    assert not caplog.records
    for secret in (*PATIENT, "Zebra", "4711"):
        assert secret not in " ".join(series.notes)


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "series", values(), AFFINE)
    for name in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'anofpdm\[dicom\]'"):
        read_series(folder)
