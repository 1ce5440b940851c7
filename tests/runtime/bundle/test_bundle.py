import dataclasses
import json

import pytest
from support import write_toy_bundle

from anofpdm.export.bundle_update import write_manifest
from anofpdm.runtime.bundle.bundle import CALIBRATION, MANIFEST, NETWORK, open_bundle
from anofpdm.runtime.bundle.calibration import EarlyStop
from anofpdm.runtime.bundle.options import Options, resolve
from anofpdm.runtime.errors import BundleError
from anofpdm.runtime.method.decision import LogisticDecision
from anofpdm.runtime.util.files import sha256


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


def edit_preset(path, **changes):
    """Change the calibration "fast"."""
    fast = json.loads((path / CALIBRATION).read_text())["presets"]["fast"]
    edit(path, CALIBRATION, presets={"fast": {**fast, **changes}})


def edit_conditions(path, **changes):
    conditions = json.loads((path / CALIBRATION).read_text())["presets"]["fast"]["conditions"]
    edit_preset(path, conditions={**conditions, **changes})


def refuse(path, message):
    with pytest.raises(BundleError, match=message) as caught:
        resolve(open_bundle(path), Options())
    assert "\n" not in str(caught.value)


def test_what_was_written_is_read(path):
    bundle = open_bundle(path)
    again = path.with_name("again")
    again.mkdir()
    for name in (NETWORK, CALIBRATION):
        (again / name).write_bytes((path / name).read_bytes())
    write_manifest(again, bundle.manifest)
    assert open_bundle(again).manifest == bundle.manifest
    assert open_bundle(again).calibrations == bundle.calibrations
    assert open_bundle(again).default == bundle.default == "fast"


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


def test_another_schema(path):
    edit(path, MANIFEST, schema_version=7)
    refuse(path, "schema 7, this version of anofpdm reads 6: update anofpdm")
    edit(path, MANIFEST, schema_version=5)
    refuse(path, "schema 5, .* reads 6: make it again with anofpdm-export and anofpdm-calibrate")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 6}', '"x"', "\xff"])
def test_damaged_manifest(path, text):
    (path / MANIFEST).write_text(text, encoding="latin-1")
    refuse(path, "manifest.json|schema None")


@pytest.mark.parametrize(
    "change",
    [
        {"w": "much"},
        {"w": float("nan")},
        {"decision": "x"},
        {"M_max": []},
        {"M_max": None},
        {"extra": 1},
        {"logistic": {"intercept": 0.0}},
        {"logistic": {"intercept": 0.0, "alignment": float("inf"), "angle": 1.0}},
        {"logistic": {"intercept": 0.0, "alignment": 1.0, "log_peak": 1.0}},
        {"plausibility": {"mean": [1.0], "spread": [0.0], "limit": 1.0}},
        {"plausibility": {"mean": [1.0, 2.0], "spread": [1.0], "limit": 1.0}},
        {"peaks": {"at_L": 1.0}},
        {"warnings": 1},
    ],
)
def test_damaged_calibration(path, change):
    edit_preset(path, **change)
    refuse(path, "calibration.json is damaged")


@pytest.mark.parametrize("change", [{"presets": {}}, {"default": "x"}, {"presets": None}])
def test_damaged_calibrations(path, change):
    edit(path, CALIBRATION, **change)
    refuse(path, "calibration.json is damaged")


@pytest.mark.parametrize(
    ("name", "value"),
    [("precision", "fp16"), ("clip", False), ("network_sha256", "f" * 64)],
)
def test_calibrated_under_other_conditions(path, name, value):
    edit_conditions(path, **{name: value})
    refuse(path, f"preset fast was made with {name} {value}")


def test_calibrated_for_other_modalities(path):
    edit_preset(path, M_max=[0.1, 0.2])
    refuse(path, "is for 2 modalities, the bundle scores 1")


@pytest.mark.parametrize(
    "change", [{"stride": 0}, {"L": 0}, {"L": "x"}, {"encoding": "x"}, {"spacing": "x"}]
)
def test_impossible_conditions(path, change):
    edit_conditions(path, **change)
    refuse(path, "calibration.json is damaged")


@pytest.mark.parametrize("w", [1e39, -1e39, float("inf"), float("nan")])
def test_a_guidance_strength_by_which_predictions_would_overflow(path, w):
    edit_preset(path, w=w)
    refuse(path, r"calibration.json is damaged \(w must be at most 1e\+06")


def test_longer_than_the_schedule(path):
    edit_conditions(path, L=1001)
    refuse(path, "goes to L = 1001, the schedule to 1000")


def test_another_schedule_needs_another_calibration(path):
    edit(path, MANIFEST, schedule={"T": 1000, "beta_first": 1e-4, "beta_last": 0.03})
    refuse(path, "was made for other modalities, another grid or another schedule")


@pytest.mark.parametrize("change", [{"scored": ["a", "a"]}, {"modalities": ["a", "a"]}])
def test_modalities_named_twice(path, change):
    edit(path, MANIFEST, **change)
    refuse(path, "manifest.json is damaged")


@pytest.mark.parametrize(
    "change",
    [{"drop": 2.0}, {"Cos_w": "x"}, {"agreement": 1.5}, {"M_max": [0.0]}, {"M_max": [1.0, 1.0]},
     {"accuracy": float("nan")}],
)  # fmt: skip
def test_damaged_early_stop(path, change):
    stop = EarlyStop(0.8, 3, 0.5, LogisticDecision(1.0, 0.0, 0.0), (0.3,), 0.995, 0.9, 0.9, 4.0, 6)
    edit_preset(path, early_stop={**dataclasses.asdict(stop), **change})
    refuse(path, "calibration.json")


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
