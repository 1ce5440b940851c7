"""DICOM SEG read back with highdicom and pydicom, and compared with the mask in the world."""

import shutil
import subprocess
from dataclasses import replace
from datetime import datetime

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import AXIAL, CORONAL, PATIENT, SAGITTAL, write_enhanced, write_series
from support import bundle, head, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.dicom import check_seg, read_series, write_seg
from anofpdm.runtime.errors import OutputError, VolumeError
from anofpdm.runtime.segmenter import Segmenter

CUTS = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL}
MADE_BY = {"model": "toy", "version": "1.2.3", "bundle_sha256": "ab" * 32}
NOON = datetime(2024, 5, 6, 12, 0, 0, 999)


def oblique():
    turn = nib.eulerangles.euler2mat(*np.deg2rad([10, -15, 20]))
    return nib.affines.from_matvec(turn @ np.diag([7.5, 6.0, 5.0]), [5, -6, 7])


def stored_head():
    return np.rint(head()).astype(np.int16)


def series(tmp_path, form="classic", how=CORONAL, change=None):
    if form == "classic":
        return read_series(write_series(tmp_path / "series", stored_head(), oblique(), how, change))
    path = write_enhanced(tmp_path / "series.dcm", stored_head(), oblique(), how, change)
    return read_series(path)


def random_mask(image, share=0.03):
    """Blobs on some slices only; nothing about them is symmetric."""
    rng = np.random.default_rng(0)
    mask = (rng.random(image.shape) < share).astype(np.uint8)
    mask[:, :, ::3] = 0
    return mask


def world_of(seg):
    """Places in RAS, mm, of the pixels that a SEG marks, by the equation of PS3.3, C.7.6.2.1.1."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    places = []
    for plane, group in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(plane):
            lps = origin + cosines[:3] * between_columns * column + cosines[3:] * between_rows * row
            places.append(lps * [-1, -1, 1])
    return np.array(places)


def in_any_order(places):
    places = np.round(places, 4)
    return places[np.lexsort(places.T)]


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("form", ["classic", "enhanced"])
def test_pixels_lie_on_the_voxels_of_the_mask(tmp_path, form, name):
    scan = series(tmp_path, form, CUTS[name])
    mask = random_mask(scan.image)
    write_seg(tmp_path / "seg.dcm", mask, scan, **MADE_BY)
    marked = world_of(pydicom.dcmread(tmp_path / "seg.dcm"))
    want = nib.affines.apply_affine(scan.image.affine, np.argwhere(mask))
    assert len(want) > 50
    np.testing.assert_allclose(in_any_order(marked), in_any_order(want), atol=2e-4)


def test_every_source_image_is_referenced_by_its_frame(tmp_path):
    scan = series(tmp_path)
    mask = random_mask(scan.image)
    write_seg(tmp_path / "seg.dcm", mask, scan, **MADE_BY)
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    sources = [pydicom.dcmread(file) for file in (tmp_path / "series").iterdir()]
    assert seg.NumberOfFrames == len(sources)
    referenced = seg.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == CORONAL.series
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == {
        source.SOPInstanceUID for source in sources
    }
    # The slice of a source by its position, which says nothing about any order.
    inverse = np.linalg.inv(scan.image.affine)
    for source in sources:
        ras = np.array(source.ImagePositionPatient, float) * [-1, -1, 1]
        i, j, k = nib.affines.apply_affine(inverse, ras)
        np.testing.assert_allclose([i, j, k - round(k)], 0, atol=1e-4)
        pixels = seg.get_pixels_by_source_instance([source.SOPInstanceUID], segment_numbers=[1])
        assert np.array_equal(pixels[0, :, :, 0], mask[:, :, round(k)].T)


def test_every_frame_of_an_enhanced_file_is_referenced(tmp_path):
    scan = series(tmp_path, "enhanced")
    mask = random_mask(scan.image)
    write_seg(tmp_path / "seg.dcm", mask, scan, **MADE_BY)
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    source = pydicom.dcmread(tmp_path / "series.dcm")
    frames = list(range(1, source.NumberOfFrames + 1))
    pixels = seg.get_pixels_by_source_frame(source.SOPInstanceUID, frames, segment_numbers=[1])
    inverse = np.linalg.inv(scan.image.affine)
    for frame, group in zip(pixels, source.PerFrameFunctionalGroupsSequence, strict=True):
        lps = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        k = round(nib.affines.apply_affine(inverse, lps * [-1, -1, 1])[2])
        assert np.array_equal(frame[:, :, 0], mask[:, :, k].T)


def test_a_segmented_series_as_highdicom_sees_it(tmp_path):
    scan = series(tmp_path, how=SAGITTAL)
    mask = Segmenter(bundle(), NumpyBackend(toy_network)).segment(scan.image).mask
    assert mask.any()
    write_seg(tmp_path / "seg.dcm", mask, scan, **MADE_BY)
    volume = hd.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    places = volume.map_indices_to_reference(np.argwhere(volume.array)) * [-1, -1, 1]
    want = nib.affines.apply_affine(scan.image.affine, np.argwhere(mask))
    np.testing.assert_allclose(in_any_order(places), in_any_order(want), atol=2e-4)
    assert volume.array.sum() == mask.sum()


@pytest.mark.parametrize("form", ["classic", "enhanced"])
def test_an_empty_mask_has_its_frames(tmp_path, form):
    scan = series(tmp_path, form)
    write_seg(tmp_path / "seg.dcm", np.zeros(scan.image.shape, np.uint8), scan, **MADE_BY)
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert seg.NumberOfFrames == scan.image.shape[2]
    assert not seg.pixel_array.any()


def test_the_file_names_what_made_it(tmp_path):
    scan = series(tmp_path)
    made_by = {**MADE_BY, "model": "m\u00f6del \\ " + "x" * 80}
    write_seg(
        tmp_path / "seg.dcm", random_mask(scan.image), scan, **made_by,
        series_description="Anomalies", when=NOON,
    )  # fmt: skip
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert seg.SegmentationType == "BINARY"
    assert seg.Modality == "SEG"
    assert seg.SeriesDescription == "Anomalies"
    assert (seg.Manufacturer, seg.SoftwareVersions) == ("anofpdm", "1.2.3")
    assert seg.DeviceSerialNumber == "ab" * 32
    assert seg.ContentCreatorName == ""
    assert (seg.ContentDate, seg.ContentTime) == ("20240506", "120000")
    (segment,) = seg.SegmentSequence
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName == "m?del ? " + "x" * 56
    assert algorithm.AlgorithmVersion == "1.2.3"
    assert algorithm.AlgorithmParameters == "bundle_sha256=" + "ab" * 32
    # SNOMED CT, as CID 7150 and 7151 of PS3.16 have them.
    description = seg.get_segment_description(1)
    assert description.segmented_property_category.value == "49755003"
    assert description.segmented_property_type.value == "52988006"


def test_patient_and_study_are_the_series(tmp_path):
    source = series(tmp_path)
    write_seg(tmp_path / "seg.dcm", random_mask(source.image), source, **MADE_BY)
    seg, first = pydicom.dcmread(tmp_path / "seg.dcm"), source.references[0]
    assert (seg.PatientName, seg.PatientID, seg.PatientBirthDate) == PATIENT
    for keyword in ("PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
                    "AccessionNumber", "StudyDescription", "FrameOfReferenceUID"):  # fmt: skip
        assert seg[keyword].value == first[keyword].value
    assert seg.SeriesInstanceUID != first.SeriesInstanceUID


def test_headers_of_the_field(tmp_path, recwarn, capsys):
    """Names beyond ASCII, values that are none, and what a de-identifier removed."""

    def change(data, k):
        data.SpecificCharacterSet = "ISO_IR 192"
        data.PatientName = "\u0141ukasz"
        data.PatientSex, data.PatientBirthDate, data.StudyTime = "X", "unknown", "25:00"
        data.PregnancyStatus = 4
        del data.StudyID, data.AccessionNumber, data.PatientID, data.StudyDate
        # Scanners round.
        x = data.ImageOrientationPatient
        data.ImageOrientationPatient = [float(x[0]) + 1e-6 * k, *x[1:]]

    with pydicom.config.disable_value_validation():
        folder = write_series(tmp_path / "series", stored_head(), oblique(), AXIAL, change)
        for file in folder.iterdir():
            whole = file.read_bytes()
            assert whole.count(b"US\x02\x00\x04\x00") == 1
            # A number of 16 bits in three bytes.
            file.write_bytes(whole.replace(b"US\x02\x00\x04\x00", b"US\x03\x00\x04\x00\x00"))
        source = read_series(folder)
        recwarn.clear()
        write_seg(tmp_path / "seg.dcm", random_mask(source.image), source, **MADE_BY)
        seg = pydicom.dcmread(tmp_path / "seg.dcm")
        assert seg.PatientName == "\u0141ukasz"
        assert (seg.PatientSex, seg.PatientBirthDate, seg.StudyTime) == ("X", "unknown", "25:00")
        assert seg.StudyID == seg.AccessionNumber == seg.PatientID == seg.StudyDate == ""
        assert "PregnancyStatus" not in seg
    assert not recwarn.list
    assert capsys.readouterr() == ("", "")


def test_the_same_run_gives_the_same_file(tmp_path):
    scan = series(tmp_path)
    mask = random_mask(scan.image)

    def write(name, mask=mask, scan=scan, when=NOON, **changes):
        write_seg(tmp_path / name, mask, scan, **{**MADE_BY, **changes}, when=when)
        return pydicom.dcmread(tmp_path / name)

    first = write("a.dcm")
    again = write("b.dcm", scan=read_series(tmp_path / "series"))
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    later = write("c.dcm", when=None)
    assert later.SOPInstanceUID == again.SOPInstanceUID == first.SOPInstanceUID
    assert later.ContentDate != first.ContentDate
    for other in (
        write("d.dcm", mask=1 - mask), write("e.dcm", bundle_sha256="cd" * 32),
        write("f.dcm", version="2"), write("g.dcm", model="other"),
        write("h.dcm", series_description="other"),
        write("i.dcm", scan=series(tmp_path / "series", how=replace(CORONAL, series="1.2.3"))),
    ):  # fmt: skip
        assert other.SOPInstanceUID != first.SOPInstanceUID
        assert other.SeriesInstanceUID != first.SeriesInstanceUID


def test_a_seg_next_to_its_series_is_no_part_of_it(tmp_path):
    scan = series(tmp_path)
    write_seg(tmp_path / "series" / "seg.dcm", random_mask(scan.image), scan, **MADE_BY)
    again = read_series(tmp_path / "series")
    assert again.notes == ("ignored: 1 object not MR images (1 Segmentation)",)
    assert again.image.shape == scan.image.shape


def test_masks_that_do_not_fit(tmp_path):
    scan = series(tmp_path)
    for mask in (np.zeros((2, 3, 4), np.uint8), np.full(scan.image.shape, 2, np.uint8)):
        with pytest.raises(VolumeError, match="0 and 1, of the series' shape"):
            write_seg(tmp_path / "seg.dcm", mask, scan, **MADE_BY)
    assert not (tmp_path / "seg.dcm").exists()


def test_outputs_that_cannot_be(tmp_path):
    scan = series(tmp_path)
    for path, message in (
        (tmp_path / "seg.nii.gz", "name it .dcm"),
        (tmp_path / "nowhere" / "seg.dcm", "does not exist"),
    ):
        with pytest.raises(OutputError, match=message):
            check_seg(path, scan)
    enhanced = series(tmp_path, "enhanced")
    before = (tmp_path / "series.dcm").read_bytes()
    with pytest.raises(OutputError, match="it is the input"):
        write_seg(tmp_path / "series.dcm", random_mask(enhanced.image), enhanced, **MADE_BY)
    assert (tmp_path / "series.dcm").read_bytes() == before


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID"])
def test_series_without_what_a_seg_names(tmp_path, keyword):
    scan = series(tmp_path, change=lambda data, k: delattr(data, keyword))
    with pytest.raises(VolumeError, match=f"lacks {keyword}.*write the mask as NIfTI"):
        check_seg(tmp_path / "seg.dcm", scan)


def test_images_that_a_seg_could_not_tell_apart(tmp_path):
    def same(dataset, k):
        if k in (3, 4):
            dataset.SOPInstanceUID = "1.2.3"

    scan = series(tmp_path, change=same)
    with pytest.raises(VolumeError, match=r"share a SOPInstanceUID.*NIfTI"):
        check_seg(tmp_path / "out.dcm", scan)


def test_series_of_two_studies_end_in_one_line(tmp_path):
    def two(dataset, k):
        if k == 3:
            dataset.StudyInstanceUID = "1.2.3.4"

    scan = series(tmp_path, change=two)
    with pytest.raises(VolumeError, match=r"no DICOM SEG can be made.*NIfTI") as raised:
        write_seg(tmp_path / "out.dcm", random_mask(scan.image), scan, **MADE_BY)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out.dcm").exists()


def test_several_manufacturers_do_no_harm(tmp_path):
    def several(dataset, k):
        dataset.Manufacturer = ["One", "Two"]

    scan = series(tmp_path, change=several)
    mask = random_mask(scan.image)
    write_seg(tmp_path / "out.dcm", mask, scan, **MADE_BY)
    assert hd.seg.segread(tmp_path / "out.dcm").pixel_array.sum() == mask.sum()


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dciodvfy, of dicom3tools")
@pytest.mark.parametrize("form", ["classic", "enhanced"])
def test_a_validator_of_the_standard_finds_nothing_wrong(tmp_path, form):
    """It warns of what is deprecated or odd as well; broken, the file is noticed."""
    scan = series(tmp_path, form)
    path = tmp_path / "out.dcm"
    write_seg(path, random_mask(scan.image), scan, **MADE_BY)

    def errors():
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        return done.returncode, [line for line in done.stderr.splitlines() if "rror" in line]

    assert errors() == (0, [])
    broken = pydicom.dcmread(path)
    del broken.SegmentSequence[0].SegmentAlgorithmType
    broken.save_as(path)
    assert any("SegmentAlgorithmType" in line for line in errors()[1])


def test_nothing_is_left_of_a_seg_that_failed(tmp_path, monkeypatch):
    scan = series(tmp_path)

    def full(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pydicom.Dataset, "save_as", full)
    with pytest.raises(OutputError, match="No space left"):
        write_seg(tmp_path / "seg.dcm", random_mask(scan.image), scan, **MADE_BY)
    assert {path.name for path in tmp_path.iterdir()} == {"series"}
