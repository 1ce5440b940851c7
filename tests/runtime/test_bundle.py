import dataclasses
import json

import pytest
from support import write_toy_bundle

from anofpdm.runtime.bundle import (
    CALIBRATION,
    MANIFEST,
    NETWORK,
    open_bundle,
    write_calibration,
    write_manifest,
)
from anofpdm.runtime.errors import BundleError, OutputError
from anofpdm.runtime.files import sha256


@pytest.fixture
def path(tmp_path):
    return write_toy_bundle(tmp_path / "toy.anofpdm")


def edit(path, file, **changes):
    """Change a JSON file of a bundle and keep the manifest's hashes right."""
    content = json.loads((path / file).read_text())
    content.update(changes)
    (path / file).write_text(json.dumps(content))
    if file != MANIFEST:
        manifest = json.loads((path / MANIFEST).read_text())
        manifest["files"][file] = sha256(path / file)
        (path / MANIFEST).write_text(json.dumps(manifest))


def refuse(path, message):
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(path).calibrated()
    assert "\n" not in str(caught.value)


def test_what_was_written_is_read(path):
    bundle = open_bundle(path)
    again = path.with_name("again")
    again.mkdir()
    for name in (NETWORK, CALIBRATION):
        (again / name).write_bytes((path / name).read_bytes())
    write_manifest(again, bundle.manifest)
    assert open_bundle(again).manifest == bundle.manifest
    assert open_bundle(again).calibrated() == bundle.calibrated()


def test_missing(tmp_path):
    refuse(tmp_path / "nowhere", "does not exist")
    refuse(tmp_path, "not a bundle")


@pytest.mark.parametrize("file", [NETWORK, CALIBRATION])
def test_altered(path, file):
    with (path / file).open("ab") as stream:
        stream.write(b" ")
    refuse(path, f"{file} was altered")


@pytest.mark.parametrize("file", [NETWORK, CALIBRATION])
def test_incomplete(path, file):
    (path / file).unlink()
    refuse(path, f"lacks {file}")


def test_newer_schema(path):
    edit(path, MANIFEST, schema_version=2)
    refuse(path, "schema 2, this version of anofpdm reads 1: update")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1}', '"x"', "\xff"])
def test_damaged_manifest(path, text):
    (path / MANIFEST).write_text(text, encoding="latin-1")
    refuse(path, "manifest.json|schema None")


@pytest.mark.parametrize(
    "change",
    [
        {"w": "much"},
        {"w": float("nan")},
        {"verdict": "x"},
        {"M_max": []},
        {"M_max": None},
        {"extra": 1},
    ],
)
def test_damaged_calibration(path, change):
    edit(path, CALIBRATION, **change)
    refuse(path, "calibration.json is damaged")


@pytest.mark.parametrize(
    ("name", "value"),
    [("L", 600), ("encoding", "ddpm"), ("precision", "fp16"), ("clip", False),
     ("network_sha256", "f" * 64), ("inputs_sha256", "f" * 64)],
)  # fmt: skip
def test_calibrated_under_other_conditions(path, name, value):
    conditions = dataclasses.asdict(open_bundle(path).calibrated().conditions)
    edit(path, CALIBRATION, conditions={**conditions, name: value})
    refuse(path, f"was made with {name} {value}")


def test_calibrated_for_other_modalities(path):
    edit(path, CALIBRATION, M_max=[0.1, 0.2])
    refuse(path, "is for 2 modalities, the bundle scores 1")


def test_impossible_stride(path):
    conditions = dataclasses.asdict(open_bundle(path).calibrated().conditions)
    edit(path, CALIBRATION, conditions={**conditions, "stride": 0})
    refuse(path, "stride must be a whole number")


def test_another_schedule_needs_another_calibration(path):
    edit(path, MANIFEST, schedule={"T": 1000, "beta_first": 1e-4, "beta_last": 0.03})
    refuse(path, "was made with inputs_sha256")


def test_a_calibration_that_cannot_be_written_leaves_the_bundle_as_it_was(path, monkeypatch):
    bundle = open_bundle(path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anofpdm.runtime.files.os.replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write_calibration(bundle, dataclasses.replace(bundle.calibrated(), w=9.0))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_uncalibrated(path):
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["files"][CALIBRATION]
    edit(path, MANIFEST, files=manifest["files"])
    refuse(path, "not calibrated: run anofpdm-calibrate")


def test_names_that_lead_out_of_the_bundle_are_refused(path):
    manifest = json.loads((path / MANIFEST).read_text())
    (path.parent / "secret").write_text("x")
    edit(path, MANIFEST, files={**manifest["files"], "../secret": "0" * 64})
    refuse(path, "lacks ../secret")
