"""What is added to a bundle is there, and nothing else has changed; engines: see test_engines."""

import dataclasses
import os

import pytest
from support import write_toy_bundle

from anofpdm.export.bundle_update import write_calibration, write_card_section, write_manifest
from anofpdm.runtime.bundle.bundle import NETWORK, open_bundle
from anofpdm.runtime.errors import BundleError, OutputError
from anofpdm.runtime.util.files import sha256


@pytest.fixture
def path(tmp_path):
    return write_toy_bundle(tmp_path / "toy.anofpdm")


def test_presets_of_other_names_stay(path):
    bundle = open_bundle(path)
    other = dataclasses.replace(bundle.calibrations["fast"], w=9.0)
    write_calibration(bundle, "exact", other)
    assert open_bundle(path).default == "fast"
    write_calibration(open_bundle(path), "third", other, default=True)
    again = open_bundle(path)
    assert list(again.calibrations) == ["fast", "exact", "third"]
    assert again.default == "third"
    assert again.calibrations["fast"] == bundle.calibrations["fast"]
    assert again.calibrations["exact"].w == 9.0


def test_a_calibration_that_cannot_be_written_leaves_the_bundle_as_it_was(path, monkeypatch):
    bundle = open_bundle(path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anofpdm.runtime.util.files.os.replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write_calibration(bundle, "fast", dataclasses.replace(bundle.calibrations["fast"], w=9.0))
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_failing_second_rename_leaves_the_bundle_as_it_was(path, monkeypatch):
    bundle, calls = open_bundle(path), []

    def once(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        os.rename(source, target)

    monkeypatch.setattr("anofpdm.runtime.util.files.os.replace", once)
    with pytest.raises(OutputError, match="No space left"):
        write_calibration(bundle, "x", bundle.calibrations["fast"])
    monkeypatch.undo()
    assert len(calls) == 2
    assert open_bundle(path) == bundle


def test_what_others_wrote_meanwhile_is_kept(path):
    first, second = open_bundle(path), open_bundle(path)
    write_calibration(first, "exact", first.calibrations["fast"])
    write_calibration(second, "fastest", second.calibrations["fast"])
    write_card_section(first, "## One", "\n\ntext")
    write_card_section(second, "## Two", " on this\n\nmore")
    write_card_section(second, "## One", "\n\nother text")
    again = open_bundle(path)
    assert list(again.calibrations) == ["fast", "exact", "fastest"]
    assert again.manifest.model_card == "## Two on this\n\nmore\n\n## One\n\nother text\n"


def test_a_network_that_was_replaced_meanwhile_is_not_given_the_calibration(path):
    bundle = open_bundle(path)
    (path / NETWORK).write_bytes(b"another")
    files = {**bundle.manifest.files, NETWORK: sha256(path / NETWORK)}
    write_manifest(path, dataclasses.replace(bundle.manifest, files=files))
    with pytest.raises(BundleError, match="has got another network meanwhile"):
        write_calibration(bundle, "fast", bundle.calibrations["fast"])
