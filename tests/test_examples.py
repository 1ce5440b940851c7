"""The example volumes, their pictures and the cases of examples/failures.py are what they are said
to be."""

import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from support import ROOT

from anofpdm import Segmenter
from anofpdm.calibrate.metrics import dice
from anofpdm.runtime.volume.grid import Grid


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import failures
    import make_examples
    import picture

    yield failures, make_examples, picture
    monkeypatch.undo()
    picture.plt.close("all")
    for name in ("failures", "make_examples", "picture"):
        sys.modules.pop(name, None)


def test_the_volume_with_a_lesion_is_what_its_script_makes(examples, monkeypatch, tmp_path):
    _, make_examples, _ = examples
    shipped = make_examples.FLAIR, make_examples.LESION
    made = tmp_path / "flair.nii.gz", tmp_path / "lesion.nii.gz"
    monkeypatch.setattr(make_examples, "FLAIR", made[0])
    monkeypatch.setattr(make_examples, "LESION", made[1])
    make_examples.simulate()
    for one, other in zip(made, shipped, strict=True):
        mine, theirs = nib.load(one), nib.load(other)
        assert mine.header == theirs.header
        # Another SciPy may round a value the other way.
        difference = np.abs(np.asarray(mine.dataobj, int) - np.asarray(theirs.dataobj, int))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-4


def test_files_depend_on_their_content_alone(examples, tmp_path):
    _, make_examples, _ = examples
    values, affine = np.arange(24, dtype=np.uint16).reshape(2, 3, 4), np.diag([1.0, 2, 3, 1])
    for name in ("one.nii.gz", "other.nii.gz"):
        make_examples.save(values, affine, "scanner", tmp_path / name)
    compressed = (tmp_path / "one.nii.gz").read_bytes()
    assert compressed == (tmp_path / "other.nii.gz").read_bytes()
    assert compressed[4:8] == bytes(4)  # no time
    np.testing.assert_array_equal(nib.load(tmp_path / "one.nii.gz").dataobj, values)


def test_all_files_are_made_from_a_folder_of_sources(examples, monkeypatch, tmp_path):
    _, make_examples, _ = examples
    before, ms = nib.load(make_examples.BEFORE), nib.load(make_examples.MS_FLAIR)
    sources, made = tmp_path / "sources" / "deep", tmp_path / "made"
    sources.mkdir(parents=True)
    made.mkdir()
    values = np.pad(np.asarray(before.dataobj), ((20, 9), (5, 30), (0, 0)))
    affine = before.affine @ nib.affines.from_matvec(np.eye(3), (-20, -5, 0))
    nib.save(nib.Nifti1Image(values, affine), sources / make_examples.HEAD_NAME)
    brain = nib.Nifti1Image(np.asarray(ms.dataobj), ms.affine)
    nib.save(brain, sources / make_examples.MS_NAME)
    nib.save(brain, sources / make_examples.MS_LESIONS_NAME)
    for name in ("FLAIR", "LESION", "BEFORE", "MS_FLAIR", "MS_LESIONS"):
        monkeypatch.setattr(make_examples, name, made / f"{name}.nii.gz")
    make_examples.main([str(tmp_path)], standalone_mode=False)
    cropped = nib.load(made / "BEFORE.nii.gz")
    np.testing.assert_array_equal(cropped.dataobj, before.dataobj)
    np.testing.assert_allclose(cropped.affine, before.affine, atol=1e-4)
    assert len(list(made.iterdir())) == 5


def test_the_lesion_is_of_plausible_size_on_the_left(examples):
    _, make_examples, _ = examples
    image, before, reference = (
        nib.load(path) for path in (make_examples.FLAIR, make_examples.BEFORE, make_examples.LESION)
    )
    values, plain = np.asarray(image.dataobj, float), np.asarray(before.dataobj, float)
    lesion = np.asarray(reference.dataobj) > 0
    assert 30 < lesion.sum() * nib.affines.voxel_sizes(image.affine).prod() / 1000 < 60
    to_mm = nib.affines.apply_affine
    middle = to_mm(image.affine, np.argwhere(plain > 40).mean(axis=0))
    assert to_mm(image.affine, np.argwhere(lesion).mean(axis=0))[0] < middle[0] - 20
    assert np.median(values[lesion] / plain[lesion]) > 1.3
    # Beyond it the head is the same, but for the faint rim of the oedema.
    assert (values >= plain).all()
    rim = ~lesion & (values > plain)
    assert np.median(values[rim] - plain[rim]) < 10
    assert rim[plain > 0].mean() < 0.03


@pytest.mark.slow
def test_the_example_is_segmented_without_a_note(examples):
    _, make_examples, _ = examples
    result = Segmenter.load().segment(nib.load(make_examples.FLAIR))
    assert not [note for note in result.notes if note.startswith("unlike")]
    assert dice(result.mask > 0, np.asarray(nib.load(make_examples.LESION).dataobj) > 0) > 0.8


@pytest.mark.slow
def test_the_cases_are_fainter_smaller_and_larger_than_the_example(examples):
    failures, make_examples, _ = examples
    plain = np.asarray(nib.load(make_examples.BEFORE).dataobj, float)
    usual = np.asarray(nib.load(make_examples.FLAIR).dataobj, float)
    lesion = np.asarray(nib.load(make_examples.LESION).dataobj) > 0
    (ms, drawn), *simulated = failures.cases().values()
    assert ms.get_filename() == str(make_examples.MS_FLAIR)
    assert drawn.sum() == np.asarray(nib.load(make_examples.MS_LESIONS).dataobj).sum() > 0
    faint, small, large = ((np.asarray(i.dataobj, float), where) for i, where in simulated)
    np.testing.assert_array_equal(faint[1], lesion)
    assert 1.05 < np.median(faint[0][lesion] / plain[lesion]) < 1.25
    assert np.median(usual[lesion] / plain[lesion]) > 1.3
    assert small[1].sum() < 0.1 * lesion.sum()
    assert small[1].sum() > 0
    for values, where in (small, large):
        assert np.median(values[where] / plain[where]) > 1.3
        far = plain > 0
        far[where] = False
        assert (values >= plain).all()
        assert np.median(values[far] / plain[far]) < 1.05
    # Algorithm 1 marks at most a tenth of the model's slice.
    tenth = 0.1 * (Grid().size * Grid().pixel_mm) ** 2
    image = nib.load(make_examples.FLAIR)
    assert failures.largest_mm2(large[1], image) > tenth > failures.largest_mm2(lesion, image)


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "RPS", "RAI", "SRA", "PIR", "AIL"])
def test_the_patients_left_is_on_the_right_of_a_picture(examples, axes):
    """Whatever the axes of the file: a flipped affine turns the voxels, not the patient."""
    _, _, picture = examples
    canonical = np.zeros((6, 8, 4))  # to the right, front and top
    canonical[1, 6, 3] = 1  # a lesion on the left, in front, on the highest slice
    stored = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    array = nib.orientations.apply_orientation(canonical, stored)
    tilted = nib.affines.from_matvec(
        nib.eulerangles.euler2mat(z=0.1, y=0.05, x=-0.1) @ np.diag([1.0, 2, 3])
    )
    affine = tilted @ inv_ornt_aff(stored, canonical.shape)
    assert nib.aff2axcodes(affine) == tuple(axes)
    slices = picture.radiological(array, affine)
    assert slices.shape == (4, 8, 6)
    assert np.argwhere(slices).tolist() == [[3, 1, 4]]  # high, at the front, on the right
    assert picture.pixel_aspect(affine) == pytest.approx(2)


def test_a_flipped_affine_flips_the_picture(examples):
    _, _, picture = examples
    array = np.zeros((4, 4, 1))
    array[0, 0, 0] = 1
    for first, column in ((1, 3), (-1, 0)):  # x grows to the patient's right, or to the left
        slices = picture.radiological(array, np.diag([first, 1.0, 1, 1]))
        assert np.argwhere(slices).tolist() == [[0, 3, column]]


def test_every_picture_marks_right_and_left(examples, monkeypatch, tmp_path):
    failures, make_examples, picture = examples
    monkeypatch.setattr(picture.plt, "close", lambda figure: None)  # looked at below
    image = nib.load(make_examples.FLAIR)
    lesion = np.asarray(nib.load(make_examples.LESION).dataobj) > 0
    levels = range(image.shape[2])
    result = SimpleNamespace(
        mask=lesion.astype(np.uint8),
        anomaly_map=lambda: nib.Nifti1Image(lesion.astype(np.float32), image.affine),
        slices=[SimpleNamespace(key=n, unhealthy=True, mask=np.eye(2)) for n in levels],
        geometry=SimpleNamespace(to_source=lambda planes: lesion.astype(np.float32)),
    )
    output = tmp_path / "picture.png"
    picture.draw_slices(result, image.get_fdata(), lesion, image.affine, output)
    assert output.exists()
    panels = picture.plt.gcf().axes
    assert len(panels) == 3 * picture.COLUMNS
    row = picture.plt.figure().subplots(1, 3)
    failures.draw(row, "a case", result, image, lesion)
    for axis in (*panels, *row):
        sides = {text.get_text(): text.get_position()[0] for text in axis.texts}
        assert sides["R"] < 0.1
        assert sides["L"] > 0.9
        assert axis.get_xlim()[0] < axis.get_xlim()[1]  # columns lead to the right
        assert axis.get_ylim()[0] > axis.get_ylim()[1]  # rows lead down
    # The lesion is on the patient's left: in the right half of the maps.
    for axis in (*panels[picture.COLUMNS : 2 * picture.COLUMNS], row[1]):
        drawn = np.asarray(axis.images[0].get_array())
        columns = np.flatnonzero(drawn.any(axis=0))
        assert all(columns > 0.5 * drawn.shape[1])
