"""The cases of a folder: by hand-made trees, named as people name them."""

from pathlib import PurePath

import nibabel as nib
import numpy as np
import pytest
from support import head, save

from anofpdm.runtime.cli.discovery import find_cases, ignored_files
from anofpdm.runtime.errors import VolumeError
from anofpdm.runtime.volume.nifti import mask_image

BOTH = ("flair", "t1")


@pytest.fixture
def tree(tmp_path):
    def make(*names, content=b""):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path

    return make


def cases_of(root, modalities=("flair",)):
    return {
        case.key: tuple(path.relative_to(root).as_posix() for path in case.images)
        for case in find_cases(root, modalities)
    }


def test_flat_files_by_modality(tree):
    root = tree("b_flair.nii.gz", "a-flair.nii", "a_t1.nii", "a_seg.nii", ".a_flair.nii", "x.txt")
    assert cases_of(root) == {"a": ("a-flair.nii",), "b": ("b_flair.nii.gz",)}
    assert list(cases_of(root)) == ["a", "b"]


def test_flat_files_of_any_name_for_one_modality(tree):
    root = tree("b.nii.gz", "a.nii", "a_mask.nii", "b_seg.nii.gz", "b_desc-anofpdm_mask.nii.gz")
    assert cases_of(root) == {"a": ("a.nii",), "b": ("b.nii.gz",)}
    with pytest.raises(VolumeError, match="no cases"):
        find_cases(root, BOTH)


def test_names_in_capitals_and_what_is_no_case(tree):
    root = tree("A.NII.GZ", "b.nii", "c_mask.nii")
    save(root / "made.nii.gz", head())
    ours = mask_image(np.zeros((2, 2, 2), np.uint8), nib.load(root / "made.nii.gz"))
    nib.save(ours, root / "made.nii.gz")
    cases = find_cases(root, ("flair",))
    assert [case.name for case in cases] == ["A", "b"]
    assert ignored_files(root, cases) == ["c_mask.nii", "made.nii.gz"]
    tree("d_flair.nii")
    cases = find_cases(root, ("flair",))
    assert ignored_files(root, cases) == ["A.NII.GZ", "b.nii", "c_mask.nii", "made.nii.gz"]


def test_flat_files_of_several_modalities(tree):
    root = tree("a_t1.nii", "a_flair.nii", "b_t1.nii")
    assert cases_of(root, BOTH) == {"a": ("a_flair.nii", "a_t1.nii"), "b": ()}
    assert find_cases(root, BOTH)[1].problem == "b: flair is missing"


def test_folders_as_brats_names_them(tree):
    tree("P1/P1_flair.nii.gz", "P1/P1_t1.nii.gz", "P1/P1_seg.nii.gz")
    root = tree("P2/P2-t2f.nii.gz", "P2/P2-t1n.nii.gz", "P3/P3_t1.nii.gz", "notes/x.txt")
    assert cases_of(root, BOTH) == {
        "P1": ("P1/P1_flair.nii.gz", "P1/P1_t1.nii.gz"),
        "P2": ("P2/P2-t2f.nii.gz", "P2/P2-t1n.nii.gz"),
        "P3": (),
    }
    assert "flair" in find_cases(root, BOTH)[2].problem


def test_bids_subjects_and_sessions(tree):
    root = tree(
        "sub-01/anat/sub-01_FLAIR.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_FLAIR.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_run-1_FLAIR.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_run-2_FLAIR.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_desc-anofpdm_FLAIR.nii.gz",
        "derivatives/sub-01/anat/sub-01_FLAIR.nii.gz", "sub-03/dwi/sub-03_dwi.nii.gz",
    )  # fmt: skip
    assert cases_of(root) == {
        "sub-01/anat/sub-01": ("sub-01/anat/sub-01_FLAIR.nii.gz",),
        **{
            f"sub-02/ses-{s}/anat/sub-02_ses-{s}{r}": (
                f"sub-02/ses-{s}/anat/sub-02_ses-{s}{r}_FLAIR.nii.gz",
            )
            for s, r in (("a", "_run-1"), ("a", "_run-2"), ("b", ""))
        },
    }
    case = find_cases(root, ("flair",))[0]
    assert (case.name, case.folder) == ("sub-01", PurePath("sub-01/anat"))


def test_one_subject_of_bids_keeps_its_name(tree):
    root = tree("sub-01/anat/sub-01_FLAIR.nii.gz", "sub-02/ses-a/anat/sub-02_ses-a_FLAIR.nii.gz")
    for name, key in (
        ("sub-01", "sub-01/anat/sub-01"),
        ("sub-02", "sub-02/ses-a/anat/sub-02_ses-a"),
    ):
        assert [case.key for case in find_cases(root / name, ("flair",))] == [key]


def test_subjects_without_the_scan_and_pairs_of_files_are_cases(tree):
    root = tree("sub-01/anat/sub-01_T1w.nii.gz", "sub-02/ses-a/anat/sub-02_ses-a_FLAIR.nii.gz")
    lacking, whole = find_cases(root, ("flair",))
    assert (lacking.key, lacking.problem) == ("sub-01/anat/sub-01", "sub-01: flair is missing")
    assert whole.problem == ""
    pairs = tree("pairs/a.img", "pairs/a.hdr", "pairs/b.img") / "pairs"
    assert cases_of(pairs) == {"a": ("a.img",)}


def test_bids_scans_that_belong_together(tree):
    root = tree(
        *(f"sub-1/anat/sub-1_{name}.nii" for name in ("FLAIR", "T1w", "ce-gd_T1w")),
        *(f"sub-2/anat/sub-2_{name}.nii" for name in ("run-1_FLAIR", "run-2_FLAIR", "T1w")),
    )
    one, two = find_cases(root, ("flair", "t1"))
    assert [path.name for path in one.images] == ["sub-1_FLAIR.nii", "sub-1_T1w.nii"]
    assert two.problem == "sub-2: several are flair: sub-2_run-1_FLAIR.nii, sub-2_run-2_FLAIR.nii"
    assert [path.name for path in find_cases(root, ("t1ce",))[0].images] == ["sub-1_ce-gd_T1w.nii"]


def test_dicom_series_however_deep(tree):
    root = tree("P1/study/flair/1", "P1/study/flair/2", "P2/0001.dcm",
                content=bytes(128) + b"DICM")  # fmt: skip
    tree("P1/study/report.txt", "P3/x.dcm", content=b"no DICOM at all")
    assert cases_of(root) == {"P1_study_flair": ("P1/study/flair",), "P2": ("P2",)}


def test_a_disc_with_a_directory_file_and_folders_of_results(tree):
    dicom = bytes(128) + b"DICM"
    root = tree("P1/DICOMDIR", "P1/S1/1", "P1/S1/2", "P2/1", "P2/old/1", content=dicom)
    tree("results/a_desc-anofpdm_seg.dcm", content=dicom)
    tree("results/anofpdm-run.json")
    assert cases_of(root) == {"P1_S1": ("P1/S1",), "P2": ("P2",)}
    assert cases_of(root / "P2") == {"P2": (".",)}


def test_a_case_of_nifti_files_may_hold_dicom(tree):
    root = tree("P1/P1_flair.nii.gz")
    tree("P1/seg.dcm", content=bytes(128) + b"DICM")
    assert cases_of(root) == {"P1": ("P1/P1_flair.nii.gz",)}


def test_links_that_lead_nowhere_and_names_that_are_too_long(tree):
    root = tree(f"{'x' * 200}_flair.nii")
    (root / "a_flair.nii").symlink_to("annex/object")
    a, long = find_cases(root, ("flair",))
    assert (a.name, a.images) == ("a", (root / "a_flair.nii",))
    assert "too long a name" in long.problem


def test_nothing_and_two_of_a_name(tree, tmp_path):
    with pytest.raises(VolumeError, match="no cases"):
        find_cases(tree("a.txt"), ("flair",))
    root = tree("P1/P1_flair.nii", "P1_flair.nii")
    with pytest.raises(VolumeError, match=r"two cases called P1 .*rename one"):
        find_cases(root, ("flair",))
