from pathlib import Path

import pytest

from anofpdm.runtime.cli.discovery import find_modalities
from anofpdm.runtime.errors import VolumeError

NAMES = ("flair", "t2")
A, B = Path("a.nii.gz"), Path("b.nii.gz")


def case(folder, *files):
    for name in files:
        (folder / name).write_bytes(b"")
    return folder


def test_in_order_or_by_name(tmp_path):
    assert find_modalities([A, B], {}, NAMES) == [A, B]
    assert find_modalities([A], {}, NAMES) == [A]  # four dimensions, perhaps
    assert find_modalities([], {"t2": B, "flair": A}, NAMES) == [A, B]


@pytest.mark.parametrize(
    "files",
    [
        ("X_flair.nii.gz", "X_t2.nii.gz", "X_t1.nii.gz", "X_seg.nii.gz", "notes.txt"),
        ("X-000-t2f.nii.gz", "X-000-t2w.nii.gz", "X-000-t1c.nii.gz"),
        ("flair.nii", "T2.nii", "._flair.nii"),
    ],
)
def test_folder_of_a_case(tmp_path, files):
    folder = case(tmp_path, *files)
    assert find_modalities([folder], {}, NAMES) == [folder / name for name in files[:2]]


def test_names_in_capitals(tmp_path):
    folder = case(tmp_path, "X_flair.nii.gz", "X_t1c.nii.gz")
    names = ("T1ce", "FLAIR")
    assert [p.name for p in find_modalities([folder], {}, names)] == [
        "X_t1c.nii.gz", "X_flair.nii.gz",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("volumes", "named", "message"),
    [
        ([A], {"t2": B}, "not both"),
        ([], {}, "no volume given: the model expects flair, t2"),
        ([], {"t2": B}, "flair is missing"),
        ([], {"t2": B, "flair": A, "t1": A}, "the model knows no t1"),
    ],
)
def test_refused(volumes, named, message):
    with pytest.raises(VolumeError, match=message):
        find_modalities(volumes, named, NAMES)


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(VolumeError, match=r"without \*_flair\.nii\.gz"):
        find_modalities([tmp_path], {}, NAMES)
    case(tmp_path, "a_flair.nii.gz", "b_flair.nii.gz", "a_t2.nii.gz")
    with pytest.raises(VolumeError, match=r"a_flair\.nii\.gz and b_flair\.nii\.gz"):
        find_modalities([tmp_path], {}, NAMES)
