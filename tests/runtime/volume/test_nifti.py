import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from support import bundle, head, save, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.errors import VolumeError
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.volume.nifti import load_image, mask_image
from anofpdm.runtime.volume.reader import read_volume

AFFINE = nib.affines.from_matvec(np.diag([7.5, 7.5, 5.0]), [-80, -100, -20])
ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product([1, -1], repeat=3)
]


def segmenter(**options):
    return Segmenter(bundle(), NumpyBackend(toy_network), **options)


def test_all_48_orientations_give_the_same_mask():
    volume = head()
    assert len(ORIENTATIONS) == 48
    want = segmenter().segment(nib.Nifti1Image(volume, AFFINE)).mask
    assert 0 < want.sum() < want.size / 4
    for orientation in ORIENTATIONS:
        turned = apply_orientation(volume, orientation)
        affine = AFFINE @ inv_ornt_aff(orientation, volume.shape)
        result = segmenter().segment(nib.Nifti1Image(turned, affine))
        assert np.array_equal(result.mask, apply_orientation(want, orientation)), orientation
        assert np.allclose(result.image.affine, affine)


def test_oblique_volumes_keep_their_affine():
    angle = np.deg2rad(20)
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    affine = nib.affines.from_matvec(turn @ AFFINE[:3, :3], [5, 6, 7])
    result = segmenter().segment(nib.Nifti1Image(head(), affine))
    assert np.allclose(result.image.affine, affine)
    assert np.array_equal(result.mask, segmenter().segment(nib.Nifti1Image(head(), AFFINE)).mask)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_mask_has_the_grid_of_the_input(kind, tmp_path):
    image = kind(head(), AFFINE)
    image.set_sform(AFFINE, code="mni")
    image.set_qform(AFFINE, code="scanner")
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "in.nii.gz")
    mask = segmenter().segment(load_image(tmp_path / "in.nii.gz")).image
    assert type(mask) is kind
    assert mask.get_data_dtype() == np.uint8
    for name in ("qform_code", "sform_code", "xyzt_units"):
        assert mask.header[name] == image.header[name], name
    for name in ("pixdim", "srow_x", "srow_y", "srow_z"):
        np.testing.assert_allclose(mask.header[name], image.header[name], err_msg=name)
    np.testing.assert_allclose(mask.header.get_qform(), AFFINE, atol=1e-4)


def test_sform_wins_and_both_forms_come_back():
    image = nib.Nifti1Image(head(), AFFINE)
    other = AFFINE.copy()
    other[:3, 3] += 9
    image.set_sform(AFFINE, code="aligned")
    image.set_qform(other, code="scanner", update_affine=False)
    mask = segmenter().segment(image).image
    np.testing.assert_allclose(mask.affine, AFFINE)
    np.testing.assert_allclose(mask.header.get_qform(), other, atol=1e-4)
    assert int(mask.header["sform_code"]) == 2


def test_qform_only():
    image = nib.Nifti1Image(head(), None)
    image.set_qform(AFFINE, code="scanner")
    mask = segmenter().segment(image).image
    np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-4)
    assert int(mask.header["sform_code"]) == 0


def stored(tmp_path, form):
    """The same head as files of other kinds; intensities are whole numbers."""
    values = np.rint(head()).astype(np.float32)
    path = tmp_path / "volume.nii"
    if form == "big-endian":
        header = nib.Nifti1Header(endianness=">")
        header.set_data_dtype(np.int16)
        nib.save(nib.Nifti1Image(values, AFFINE, header), path)
        assert nib.load(path).header.endianness == ">"
    elif form == "scaled":
        image = nib.Nifti1Image(values, AFFINE)
        image.header.set_data_dtype(np.int16)
        image.header.set_slope_inter(0.5, -20)
        nib.save(image, path)
        assert nib.load(path).dataobj.slope == 0.5
    elif form == "float64":
        nib.save(nib.Nifti1Image(values.astype(np.float64), AFFINE), path)
    elif form == "trailing axis":
        nib.save(nib.Nifti1Image(values[..., None], AFFINE), path)
    elif form == "pair":
        path = tmp_path / "volume.hdr"
        nib.save(nib.Nifti1Pair(values, AFFINE), tmp_path / "volume.img")
    else:
        path = tmp_path / f"volume{form}"
        nib.save(nib.Nifti1Image(values, AFFINE), path)
    return path


@pytest.mark.parametrize(
    "form", ["big-endian", "scaled", "float64", "trailing axis", "pair", ".nii", ".nii.gz"]
)
def test_good_inputs_give_the_same_mask(tmp_path, form):
    want = segmenter().segment(nib.Nifti1Image(np.rint(head()), AFFINE)).mask
    image = load_image(stored(tmp_path, form))
    result = segmenter().segment(image)
    assert result.mask.shape == image.shape
    assert np.array_equal(result.mask.squeeze(), want)


def test_arrays_and_images_are_the_same():
    volume = head()
    want = segmenter().segment(nib.Nifti1Image(volume, AFFINE)).mask
    assert np.array_equal(segmenter().segment(volume.astype(np.float64), affine=AFFINE).mask, want)


def test_modalities_on_other_grids_are_resampled_onto_the_first():
    """A ramp in millimetres has the same value at the same place, whatever the voxels."""
    fine_affine = nib.affines.from_matvec(np.diag([3.0, -3.5, 2.5]), [-85, 110, -25])
    shape = (60, 64, 24)
    places = nib.affines.apply_affine(fine_affine, np.moveaxis(np.indices(shape), 0, -1))
    ramp = (places @ [1.0, 10.0, 100.0]).astype(np.float32)
    first = nib.Nifti1Image(head(), AFFINE)
    volume = read_volume([first, nib.Nifti1Image(ramp, fine_affine)], ["a", "b"], 2)
    places = nib.affines.apply_affine(AFFINE, np.moveaxis(np.indices(head().shape), 0, -1))
    inside = (slice(2, -2),) * 3
    np.testing.assert_allclose(volume.data[1][inside], (places @ [1, 10, 100])[inside], atol=0.05)


def test_integers_are_interpolated_as_real_numbers():
    ramp = np.zeros((3, 4, 5), np.uint8)
    ramp[1:] = 1
    fine = nib.Nifti1Image(np.random.default_rng(0).random((5, 4, 5)), np.diag([1.0, 2, 2, 1]))
    coarse = nib.Nifti1Image(ramp, np.diag([2.0, 2, 2, 1]))
    volume = read_volume([fine, coarse], ["a", "b"], 2)
    np.testing.assert_allclose(volume.data[1, :, 0, 0], [0, 0.5, 1, 1, 1])
    assert volume.notes == ("b was resampled onto the grid of a",)


def test_a_truncated_file_of_one_among_several_modalities(tmp_path):
    path = tmp_path / "b.nii"
    save(path, head()[..., None])
    path.write_bytes(path.read_bytes()[:2000])
    whole = nib.load(save(tmp_path / "a.nii", head()[..., None]))
    with pytest.raises(VolumeError, match="truncated or damaged"):
        read_volume([whole, nib.load(path)], ["a", "b"], 2)
    assert read_volume([whole, whole], ["a", "b"], 2).data.shape == (2, 24, 28, 10)


def test_modalities_in_other_units_are_refused():
    metres = nib.Nifti1Image(head(), np.diag([0.0075, 0.0075, 0.005, 1]))
    metres.header.set_xyzt_units("meter")
    with pytest.raises(VolumeError, match="measure space in different units"):
        read_volume([nib.Nifti1Image(head(), AFFINE), metres], ["a", "b"], 2)


def test_units_other_than_millimetres_are_heeded():
    want = segmenter().segment(nib.Nifti1Image(head(), AFFINE))
    for unit, factor in (("meter", 1e-3), ("micron", 1e3)):
        image = nib.Nifti1Image(head(), np.diag([factor] * 3 + [1]) @ AFFINE)
        image.header.set_xyzt_units(unit)
        result = segmenter().segment(image)
        assert np.array_equal(result.mask, want.mask)
        assert result.volume_ml == pytest.approx(want.volume_ml)
        assert result.image.header.get_xyzt_units()[0] == unit


def test_voxels_too_small_for_a_head_are_refused():
    with pytest.raises(VolumeError, match=r"are its voxels really 0\.0075 x"):
        segmenter().segment(nib.Nifti1Image(head(), np.diag([1e-3] * 3 + [1]) @ AFFINE))


def test_a_bad_qform_next_to_a_good_sform_is_kept_as_it_is():
    image = nib.Nifti1Image(head(), AFFINE)
    image.header["qform_code"] = 1
    image.header["quatern_b"] = image.header["quatern_c"] = 5
    mask = segmenter().segment(image).image
    assert float(mask.header["quatern_b"]) == 5


def complex_image():
    return nib.Nifti1Image(head().astype(np.complex64), AFFINE)


def rgb_image():
    return nib.Nifti1Image(np.zeros((8, 8, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), AFFINE)


def with_value(value):
    volume = head()
    volume[3, 4, 5] = value
    return nib.Nifti1Image(volume, AFFINE)


def singular():
    header = nib.Nifti1Image(head(), AFFINE).header
    header["sform_code"], header["srow_z"] = 1, 0
    return nib.Nifti1Image.from_bytes(nib.Nifti1Image(head(), None, header).to_bytes())


BAD_IMAGES = {
    "2-D": (lambda: nib.Nifti1Image(head()[..., 0], AFFINE), "shape"),
    "4-D": (lambda: nib.Nifti1Image(np.stack([head()] * 3, -1), AFFINE), "shape"),
    "no voxels": (lambda: nib.Nifti1Image(np.zeros((4, 0, 4), np.float32), AFFINE), "no voxels"),
    "complex": (complex_image, "complex64"),
    "RGB": (rgb_image, "one real value"),
    "NaN": (lambda: with_value(np.nan), "NaN or infinite"),
    "infinity": (lambda: with_value(np.inf), "NaN or infinite"),
    "zeros": (lambda: nib.Nifti1Image(0 * head(), AFFINE), "same value, 0,"),
    "constant": (lambda: nib.Nifti1Image(0 * head() + 7, AFFINE), "same value, 7,"),
    "singular affine": (singular, "singular affine"),
    "no affine": (lambda: nib.Nifti1Image(head(), None), "singular affine"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_refused_with_one_line(name):
    make, message = BAD_IMAGES[name]
    with pytest.raises(VolumeError, match=message) as caught:
        segmenter().segment(make())
    assert "\n" not in str(caught.value)


def test_arrays_need_an_affine_and_real_values():
    with pytest.raises(VolumeError, match="needs its affine"):
        segmenter().segment(head())
    with pytest.raises(VolumeError, match="must be \\(4, 4\\)"):
        segmenter().segment(head(), affine=np.eye(3))
    with pytest.raises(VolumeError, match="real numbers"):
        segmenter().segment(head() * 1j, affine=AFFINE)


def test_analyze_images_without_forms_are_accepted():
    image = nib.AnalyzeImage(head(), np.diag([-7.5, 7.5, 5.0, 1]))
    mask = mask_image(np.zeros(image.shape, np.uint8), image)
    np.testing.assert_allclose(mask.affine, image.affine)
