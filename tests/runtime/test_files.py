import json

import pytest

from anofpdm.runtime.errors import OutputError
from anofpdm.runtime.files import sha256, whole_file, write_json


def test_nothing_is_left_when_writing_fails(tmp_path):
    path = tmp_path / "mask.nii.gz"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as beside:  # noqa: PT012
        assert beside.name.endswith(".nii.gz")
        beside.write_text("half")
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
