"""DICOM series against the arrays that they were written from, voxel by voxel in the world."""

import gzip
import itertools
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import AXIAL, CORONAL, SAGITTAL, Acquisition, write_enhanced, write_series
from support import bundle, head, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.dicom import is_dicom, read_series
from anofpdm.runtime.segmenter import Segmenter

# Three spacings, so that no two axes can be confused.
SPACING = np.diag([7.5, 6.0, 5.0])
AFFINE = nib.affines.from_matvec(SPACING, [-80, -100, -20])
CUTS = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL}
WRITERS = {
    "classic": lambda folder, *volume: write_series(folder / "series", *volume),
    "enhanced": lambda folder, *volume: write_enhanced(folder / "series.dcm", *volume),
}


def oblique(x=20, y=-15, z=10):
    """Rotated about all three axes."""
    turn = nib.eulerangles.euler2mat(*np.deg2rad([z, y, x]))
    return nib.affines.from_matvec(turn @ SPACING, [5, -6, 7])


def stored_head(dtype=np.int16):
    return np.rint(head()).astype(dtype)


def places_in(image, shape, affine):
    """For every voxel of an array (X, Y, Z), the voxel of the image at the same place."""
    world = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    places = nib.affines.apply_affine(np.linalg.inv(image.affine), world)
    np.testing.assert_allclose(places, np.rint(places), atol=1e-3)
    places = np.rint(places).astype(int)
    assert (places >= 0).all()
    assert (places < image.shape).all()
    assert len(np.unique(places.reshape(-1, 3), axis=0)) == np.prod(image.shape)
    return tuple(np.moveaxis(places, -1, 0))


@pytest.mark.parametrize("affine", [AFFINE, oblique()], ids=["straight", "oblique"])
@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("form", WRITERS)
def test_voxels_lie_where_they_lay(tmp_path, form, name, affine):
    values = stored_head()
    image = read_series(WRITERS[form](tmp_path, values, affine, CUTS[name])).image
    there = places_in(image, values.shape, affine)
    assert image.get_data_dtype() == np.int16
    assert np.array_equal(np.asarray(image.dataobj)[there], values)
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(image.get_qform(), image.affine, atol=1e-3)


def test_every_orientation_of_the_slices(tmp_path):
    values, affine = stored_head()[:5, :6, :4], oblique()
    cuts = itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    for number, (axes, flips) in enumerate(cuts):
        how = Acquisition(axes, flips)
        image = read_series(write_series(tmp_path / str(number), values, affine, how)).image
        there = places_in(image, values.shape, affine)
        assert np.array_equal(np.asarray(image.dataobj)[there], values), (axes, flips)
        # Columns, rows and the normal are right-handed in LPS, and so in RAS.
        assert np.linalg.det(image.affine[:3, :3]) > 0
    assert number == 47


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("form", WRITERS)
def test_the_mask_is_that_of_the_nifti(tmp_path, form, name):
    values, affine = stored_head(), oblique(5, 4, -3)
    segmenter = Segmenter(bundle(), NumpyBackend(toy_network))
    want = segmenter.segment(nib.Nifti1Image(values.astype(np.float32), affine))
    series = read_series(WRITERS[form](tmp_path, values, affine, CUTS[name]))
    segmentation = segmenter.segment(series.image)
    assert 0 < want.mask.sum() < want.mask.size / 4
    assert segmentation.mask.shape == series.image.shape
    assert np.array_equal(
        segmentation.mask[places_in(segmentation.image, values.shape, affine)], want.mask
    )
    assert segmentation.volume_ml == pytest.approx(want.volume_ml)


@pytest.mark.parametrize("form", WRITERS)
def test_numbers_are_rescaled(tmp_path, form):
    values = stored_head(np.uint16)
    how = replace(SAGITTAL, slope=0.25, intercept=-7.5, dtype=np.uint16)
    image = read_series(WRITERS[form](tmp_path, values, AFFINE, how)).image
    there = places_in(image, values.shape, AFFINE)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(image.dataobj)[there], values * 0.25 - 7.5)


def test_every_slice_has_its_own_scale(tmp_path):
    def change(data, k):
        data.RescaleSlope, data.RescaleIntercept = k + 1, -k

    values = stored_head()
    folder = write_series(tmp_path / "series", values, AFFINE, Acquisition(), change)
    image = read_series(folder).image
    there = places_in(image, values.shape, AFFINE)
    k = np.arange(values.shape[2])
    np.testing.assert_array_equal(np.asarray(image.dataobj)[there], values * (k + 1.0) - k)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32])
def test_stored_types(tmp_path, dtype):
    info = np.iinfo(dtype)
    values = np.random.default_rng(0).integers(info.min, info.max, (4, 5, 3), dtype, endpoint=True)
    how = replace(AXIAL, dtype=dtype)
    image = read_series(write_series(tmp_path / "series", values, AFFINE, how)).image
    assert image.get_data_dtype() == dtype
    there = places_in(image, values.shape, AFFINE)
    assert np.array_equal(np.asarray(image.dataobj)[there], values)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_bits_that_are_not_in_use_do_not_count(tmp_path, dtype):
    low, high = (0, 4095) if dtype is np.uint16 else (-2048, 2047)
    values = np.random.default_rng(0).integers(low, high, (4, 5, 3), np.int16, endpoint=True)

    def change(data, k):
        data.BitsStored, data.HighBit = 12, 11
        pixels = np.frombuffer(data.PixelData, np.uint16)
        data.PixelData = (pixels & 0x0FFF | 0xA000).tobytes()

    how = replace(AXIAL, dtype=dtype)
    image = read_series(write_series(tmp_path / "series", values, AFFINE, how, change)).image
    there = places_in(image, values.shape, AFFINE)
    assert np.array_equal(np.asarray(image.dataobj)[there], values)


def test_compressed_images(tmp_path):
    def change(data, k):
        data.compress(pydicom.uid.RLELossless)

    values = stored_head()
    image = read_series(write_series(tmp_path / "series", values, AFFINE, AXIAL, change)).image
    assert np.array_equal(np.asarray(image.dataobj)[places_in(image, values.shape, AFFINE)], values)


def test_shared_groups_of_an_enhanced_file(tmp_path):
    values = stored_head()
    image = read_series(write_enhanced(tmp_path / "x.dcm", values, AFFINE, shared=True)).image
    assert np.array_equal(np.asarray(image.dataobj)[places_in(image, values.shape, AFFINE)], values)


def test_a_scanner_file_lies_where_nibabel_puts_it(tmp_path):
    """An enhanced sagittal MPRAGE, whose pixels were blanked, that nibabel is tested with."""
    packed = Path(nib.__file__).parent / "nicom/tests/data/philips_mprage.dcm.gz"
    if not packed.exists():
        pytest.skip("this nibabel comes without its test data")
    path = tmp_path / "mprage.dcm"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    image = read_series(path).image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("nibabel.nicom.dicomwrappers").wrapper_from_file(path)
    assert image.shape == theirs.image_shape == (256, 256, 176)
    # Theirs counts rows first, in LPS.
    corners = np.array([(j, i, k) for j in (0, 255) for i in (0, 255) for k in (0, 175)])
    world = nib.affines.apply_affine(theirs.affine, corners) * [-1, -1, 1]
    places = nib.affines.apply_affine(np.linalg.inv(image.affine), world)
    np.testing.assert_allclose(places[:, :2], corners[:, [1, 0]], atol=2e-3)
    # ... and slices in the other direction.
    np.testing.assert_allclose(places[:, 2], 175 - corners[:, 2], atol=2e-3)


def test_positions_that_were_rounded_are_even_enough(tmp_path):
    def change(data, k):
        data.ImagePositionPatient = [f"{float(v):.1f}" for v in data.ImagePositionPatient]

    values, affine = stored_head(), oblique()
    folder = write_series(tmp_path / "series", values, affine, SAGITTAL, change)
    image = read_series(folder).image
    world = nib.affines.apply_affine(affine, np.argwhere(values > 0))
    places = nib.affines.apply_affine(np.linalg.inv(image.affine), world)
    voxels = np.asarray(image.dataobj)[tuple(np.rint(places).astype(int).T)]
    assert np.array_equal(voxels, values[values > 0])


def test_references_are_the_images_of_the_slices(tmp_path):
    values = stored_head()
    series = read_series(write_series(tmp_path / "series", values, oblique(), CORONAL))
    assert len(series.references) == len(series.files) == series.image.shape[2]
    assert not series.enhanced
    assert series.uid == CORONAL.series
    for k, (reference, file) in enumerate(zip(series.references, series.files, strict=True)):
        assert "PixelData" not in reference
        stored = pydicom.dcmread(file)
        assert stored.SOPInstanceUID == reference.SOPInstanceUID
        assert np.array_equal(stored.pixel_array.T, np.asarray(series.image.dataobj)[..., k])
        lps = (series.image.affine @ [0, 0, k, 1])[:3] * [-1, -1, 1]
        np.testing.assert_allclose(lps, stored.ImagePositionPatient, atol=1e-6)


def test_frames_are_those_of_the_slices(tmp_path):
    values = stored_head()
    series = read_series(write_enhanced(tmp_path / "x.dcm", values, oblique(), CORONAL))
    assert series.enhanced
    (reference,) = series.references
    assert "PixelData" not in reference
    pixels = pydicom.dcmread(tmp_path / "x.dcm").pixel_array
    assert sorted(series.frames) == list(range(1, len(pixels) + 1))
    assert list(series.frames) != sorted(series.frames)
    for k, frame in enumerate(series.frames):
        assert np.array_equal(pixels[frame - 1].T, np.asarray(series.image.dataobj)[..., k])


def test_what_is_no_image_is_ignored_and_counted(tmp_path):
    values = stored_head()
    folder = write_series(tmp_path / "series", values, AFFINE)
    want = read_series(folder)
    assert want.notes == ()
    (folder / "README.txt").write_text("not DICOM")
    (folder / "empty").touch()
    below = folder / "below"
    below.mkdir()
    (below / "truncated").write_bytes(b"\0" * 100)
    report = pydicom.dcmread(next(folder.glob("IM*")))
    del report.PixelData
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = pydicom.uid.BasicTextSRStorage
    report.save_as(below / "SR0001")
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.3.10.99"
    report.save_as(below / "private")
    report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    report.save_as(folder / "DICOMDIR")
    series = read_series(folder)
    assert np.array_equal(np.asarray(series.image.dataobj), np.asarray(want.image.dataobj))
    (note,) = series.notes
    assert note == (
        "ignored: 3 files not DICOM, a DICOMDIR, 2 objects not MR images "
        "(1 Basic Text SR, 1 of another kind)"
    )


def test_images_in_folders_below_are_one_series(tmp_path):
    values = stored_head()
    folder = write_series(tmp_path / "disc", values, AFFINE)
    for number, file in enumerate(sorted(folder.iterdir())):
        below = folder / f"PA{number % 3}"
        below.mkdir(exist_ok=True)
        file.rename(below / f"IM{number}")
    assert read_series(folder).image.shape == (24, 28, 10)


def test_the_mark_of_dicom(tmp_path):
    folder = write_series(tmp_path / "series", stored_head(), AFFINE)
    assert is_dicom(next(folder.iterdir()))
    assert not is_dicom(folder)
    assert not is_dicom(tmp_path / "nothing")
    nib.save(nib.Nifti1Image(head(), AFFINE), tmp_path / "flair.nii.gz")
    assert not is_dicom(tmp_path / "flair.nii.gz")


def test_one_of_several_series(tmp_path):
    values = stored_head()
    other = replace(AXIAL, series="1.2.3.4.777")
    write_series(tmp_path, values, AFFINE, AXIAL, prefix="a")
    write_series(tmp_path, values + 1, AFFINE, other, prefix="b")
    for uid in ("1.2.3.4.777", "777"):
        series = read_series(tmp_path, uid)
        there = places_in(series.image, values.shape, AFFINE)
        assert np.array_equal(np.asarray(series.image.dataobj)[there], values + 1)
        assert series.notes == ("ignored: 10 MR images of other series",)
