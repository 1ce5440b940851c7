from pathlib import Path

import numpy as np
import pytest
from support import head, save, shared, write_cohort

from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.volume.grid import Grid
from anofpdm.train.cohort import Case, assign_splits, read_cohort
from anofpdm.train.dataset import open_sliceset
from anofpdm.train.prepare import prepare

GRID = Grid(32, 7.5)


def prepared(cases, modalities, folder, splits=True):
    cases = assign_splits(cases, 0) if splits else cases
    prepare(cases, modalities, GRID, folder, {}, lambda done, total: None)
    return open_sliceset(folder)


def test_brats_layout(tmp_path):
    write_cohort(tmp_path, 3, ("flair", "t1ce"))
    cases = read_cohort(tmp_path, ("t1ce", "flair"))
    assert [case.patient for case in cases] == ["P00", "P01", "P02"]
    assert cases[1].mask == tmp_path / "P01/P01_seg.nii.gz"
    assert [p.name for p in cases[1].paths(("t1ce", "flair"))] == [
        "P01_t1ce.nii.gz", "P01_flair.nii.gz",
    ]  # fmt: skip


def test_cases_that_lack_a_modality_are_left_out_and_counted(tmp_path):
    write_cohort(tmp_path, 3, ("flair", "t1ce"))
    (tmp_path / "P01/P01_t1ce.nii.gz").unlink()
    notes = []
    assert len(read_cohort(tmp_path, ("t1ce", "flair"), notes.append)) == 2
    assert notes == ["1 of 3 cases lack some of t1ce, flair: left out"]
    assert len(read_cohort(tmp_path, ("flair",), notes.append)) == 3
    assert len(notes) == 1


def test_atlas_layout(tmp_path):
    for subject in ("sub-r001s001", "sub-r001s002"):
        anat = tmp_path / "Training" / subject / "ses-1" / "anat"
        anat.mkdir(parents=True)
        stem = f"{subject}_ses-1_space-MNI152NLin2009aSym"
        save(anat / f"{stem}_T1w.nii.gz", head())
        save(anat / f"{stem}_label-L_desc-T1lesion_mask.nii.gz", (head() > 150).astype(np.uint8))
    cases = read_cohort(tmp_path, ("t1",))
    assert [case.patient for case in cases] == ["sub-r001s001", "sub-r001s002"]
    assert all(case.mask is not None for case in cases)


def test_csv_with_slice_labels_and_no_masks(tmp_path):
    save(tmp_path / "a.nii.gz", head((32, 32, 6)))
    save(tmp_path / "b.nii.gz", head((32, 32, 6), lesion=False))
    table = tmp_path / "cohort.csv"
    table.write_text(
        "patient,flair,slice_labels,split\nA,a.nii.gz,001100,train\nB,b.nii.gz,0,val\n"
    )
    slices = prepared(read_cohort(table, ("flair",)), ("flair",), tmp_path / "s")
    assert not any(record.drawn for record in slices.records)
    for record in slices.records:
        assert record.unhealthy == (record.patient == "A" and record.level in (2, 3))
        assert record.split == ("train" if record.patient == "A" else "val")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("patient,flair,mask\nA,none.nii.gz,\n", "none.nii.gz does not exist"),
        ("patient,flair\nA,a.nii.gz\n", "give a mask or slice_labels"),
        ("patient,flair,slice_labels\nA,a.nii.gz,0120\n", "digits 0 and 1"),
        ("name,flair\nA,a.nii.gz\n", "no patient"),
        ("patient,t2,slice_labels\nA,a.nii.gz,0\n", "no case has flair; found modalities: t2"),
    ],
)
def test_bad_csv(tmp_path, rows, message):
    save(tmp_path / "a.nii.gz", head())
    (tmp_path / "c.csv").write_text(rows)
    with pytest.raises(CohortError, match=message):
        read_cohort(tmp_path / "c.csv", ("flair",))


def test_wrong_number_of_slice_labels(tmp_path):
    save(tmp_path / "a.nii.gz", head())
    case = Case("A", {"flair": tmp_path / "a.nii.gz"}, slice_labels="01", split="train")
    with pytest.raises(CohortError, match="2 slice_labels for 10 axial slices"):
        prepared([case], ("flair",), tmp_path / "s", splits=False)


def test_a_mixed_cohort_says_whose_lesions_were_drawn(tmp_path):
    write_cohort(tmp_path / "c", 2)
    masked = read_cohort(tmp_path / "c", ("flair",))
    labelled = Case("Q", masked[0].volumes, slice_labels="001100")
    slices = prepared([*masked, labelled], ("flair",), tmp_path / "s")
    for record in slices.records:
        assert record.drawn == (record.patient != "Q")


def test_a_scan_without_any_label_is_refused(tmp_path):
    write_cohort(tmp_path / "c", 2)
    (tmp_path / "c/P01/P01_seg.nii.gz").unlink()
    with pytest.raises(CohortError, match="P01 has neither a mask nor slice_labels"):
        prepared(read_cohort(tmp_path / "c", ("flair",)), ("flair",), tmp_path / "s")


def test_a_truncated_mask_is_named(tmp_path):
    write_cohort(tmp_path / "c", 2)
    path = tmp_path / "c/P01/P01_seg.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CohortError, match=r"P01_seg\.nii\.gz is truncated"):
        prepared(read_cohort(tmp_path / "c", ("flair",)), ("flair",), tmp_path / "s")


def test_masks_on_another_grid_are_resampled(tmp_path):
    write_cohort(tmp_path / "c", 2)
    path = tmp_path / "c/P01/P01_seg.nii.gz"
    import nibabel as nib

    cases = read_cohort(tmp_path / "c", ("flair",))
    want = prepared(cases, ("flair",), tmp_path / "one")
    mask = nib.load(path)
    fine = np.repeat(np.repeat(np.asarray(mask.dataobj), 2, axis=0), 2, axis=1)
    affine = mask.affine @ np.array(
        [[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    save(path, fine, affine)
    got = prepared(cases, ("flair",), tmp_path / "two")
    assert any(want.mask(i).any() for i in range(len(want)))
    for i in range(len(want)):
        overlap = (got.mask(i) & want.mask(i)).sum()
        assert overlap >= 0.8 * max(got.mask(i).sum(), want.mask(i).sum())


def test_unknown_layouts(tmp_path):
    with pytest.raises(CohortError, match="list the files in a CSV"):
        read_cohort(tmp_path, ("flair",))
    with pytest.raises(CohortError, match="does not exist"):
        read_cohort(tmp_path / "nowhere", ("flair",))


def test_splits_are_by_patient_and_repeatable():
    scans = [Case(f"P{i // 2:02d}", {"t1": Path(f"{i}")}) for i in range(80)]
    first, again = assign_splits(scans, 1), assign_splits(scans[::-1], 1)[::-1]
    assert first == again
    assert first != assign_splits(scans, 2)
    by_patient = {}
    for case in first:
        by_patient.setdefault(case.patient, set()).add(case.split)
    assert all(len(splits) == 1 for splits in by_patient.values())
    counts = [sum(s == {name} for s in by_patient.values()) for name in ("train", "val", "test")]
    assert counts == [32, 4, 4]


def test_given_splits_stay_and_half_given_ones_are_refused():
    given = [Case("A", {}, split="test"), Case("B", {}, split="train")]
    assert assign_splits(given, 0) == given
    with pytest.raises(CohortError, match="no split is given for B"):
        assign_splits([given[0], Case("B", {})], 0)


def test_labels_come_from_masks_and_slices_are_the_runtimes(tmp_path):
    write_cohort(tmp_path / "c", 2)
    slices = prepared(read_cohort(tmp_path / "c", ("flair",)), ("flair",), tmp_path / "s")
    import nibabel as nib

    from anofpdm.runtime.volume.grid import to_grid

    for patient in ("P00", "P01"):
        image = nib.load(tmp_path / f"c/{patient}/{patient}_flair.nii.gz")
        drawn = np.asarray(nib.load(tmp_path / f"c/{patient}/{patient}_seg.nii.gz").dataobj)
        want, placement = to_grid(image.get_fdata(dtype=np.float32)[None], (7.5, 7.5, 5.0), GRID)
        mine = [i for i, record in enumerate(slices.records) if record.patient == patient]
        assert [slices.records[i].level for i in mine] == placement.levels.tolist()
        for i, x0 in zip(mine, want, strict=True):
            np.testing.assert_allclose(slices.x0(i), x0, atol=1 / 255)
            record = slices.records[i]
            assert record.unhealthy == drawn[..., record.level].any()
            assert bool(slices.mask(i).any()) <= record.unhealthy


def test_an_unfinished_set_is_not_opened(tmp_path):
    write_cohort(tmp_path / "c", 2)
    (tmp_path / "c/P01/P01_flair.nii.gz").write_text("broken")
    with pytest.raises(CohortError, match=r"patient P01: .*not a readable NIfTI"):
        prepared(read_cohort(tmp_path / "c", ("flair",)), ("flair",), tmp_path / "s")
    with pytest.raises(CohortError, match="no prepared slices"):
        open_sliceset(tmp_path / "s")


@pytest.mark.shared
def test_the_lgg_cohort_is_read_with_its_splits():
    cases = read_cohort(shared("data", "lgg"), ("flair",))
    splits = [case.split for case in assign_splits(cases, 0)]
    assert [splits.count(name) for name in ("train", "val", "test")] == [68, 10, 10]
