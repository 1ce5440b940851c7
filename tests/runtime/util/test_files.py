import json
import os

import pytest

from anofpdm.runtime.errors import OutputError
from anofpdm.runtime.util.files import (
    check_folder,
    remove_leftovers,
    sha256,
    sole_writer,
    whole_file,
    whole_files,
    writable_folder,
    write_json,
)


def test_nothing_is_left_when_writing_fails(tmp_path):
    path = tmp_path / "mask.nii.gz"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as temporary:  # noqa: PT012
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="No space left"), whole_file(tmp_path / "x"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_json_is_whole_and_strict(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_sha256_of_nothing(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    assert sha256(tmp_path / "x").startswith("e3b0c44298fc1c14")


def test_what_cannot_be_written_is_reported_once(tmp_path):
    with (
        pytest.raises(OutputError) as raised,
        whole_files({"a": tmp_path / "a"}),
        whole_file(tmp_path / "no" / "b"),
    ):
        pass
    assert str(raised.value).count("cannot write") == 1


def test_several_files_are_put_in_place_together_in_their_order(tmp_path, monkeypatch):
    renamed, rename = [], os.replace
    monkeypatch.setattr(
        "os.replace", lambda one, other: (renamed.append(other.name), rename(one, other))
    )
    paths = {name: tmp_path / name for name in ("b", "a", "c")}
    with whole_files(paths) as temporary:
        for name in ("a", "c", "b"):
            temporary[name].write_text(name)
            assert not paths[name].exists()
    assert renamed == ["b", "a", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    with pytest.raises(OutputError), whole_files(paths) as temporary:
        temporary["a"].write_text("new")  # the others are not written
    assert [path.read_text() for path in paths.values()] == ["b", "a", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path):
    left = [".m-0a1b2c3d.nii.gz", ".-0a1b2c3d.m-89abcdef.nii.gz"]
    others = ["m.nii.gz", ".m-0a1b2c3.nii.gz", ".mm-0a1b2c3d.nii.gz", ".m-0a1b2c3d.json",
              "m-0a1b2c3d.nii.gz"]  # fmt: skip
    for name in left + others:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "m.nii.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_what_is_no_folder_to_write_to_is_refused_before(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match="it is a folder: name a file"):
        writable_folder(tmp_path)
    with pytest.raises(OutputError, match="it is a file: name a folder"):
        check_folder(file)
    with pytest.raises(OutputError, match="is a file: name another folder"):
        check_folder(file / "below")
    check_folder(tmp_path / "new" / "newer")


def test_one_process_writes_to_a_folder_at_a_time(tmp_path):
    second = sole_writer(tmp_path)
    with sole_writer(tmp_path), pytest.raises(OutputError, match="another run is writing"):
        second.__enter__()
    with sole_writer(tmp_path):
        pass
