"""The whole path once: cohort -> checkpoint -> bundle -> calibration -> figures -> mask."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support import head, save, write_cohort

from anofpdm import Segmenter
from anofpdm.calibrate.evaluate_main import main as evaluate
from anofpdm.calibrate.main import main as calibrate
from anofpdm.export.main import main as export
from anofpdm.runtime.bundle import open_bundle
from anofpdm.runtime.infer import main as infer
from anofpdm.train.checkpoint import load_checkpoint
from anofpdm.train.main import main as train

SMALL = ["--image-size", "32", "--pixel-mm", "7.5", "--base-width", "32", "--batch", "4"]


def call(command, *arguments, code=0):
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("path")
    cohort = write_cohort(folder / "cohort", 8)
    split = ["train", "train", "train", "train", "val", "val", "test", "test"]
    rows = [f"P{i:02d},{name}" for i, name in enumerate(split)]
    (cohort / "patients.csv").write_text("\n".join(["patient,split", *rows]) + "\n")
    call(train, cohort, "-o", folder / "run", *SMALL, "--iterations", 30)
    call(export, "--ckpt", folder / "run/model.pt", "-o", folder / "m.anofpdm")
    return folder


@pytest.fixture(scope="module")
def calibrated(folder):
    said = call(calibrate, folder / "run/slices", "--bundle", folder / "m.anofpdm",
                "--stride", 50, "--length", "101,201", "--w", "1,3")  # fmt: skip
    assert "chosen: L = " in said
    return folder / "m.anofpdm"


def test_run_folder_describes_itself(folder):
    config = json.loads((folder / "run/config.json").read_text())
    assert config["cohort"] == "cohort"
    assert config["unet"]["base_width"] == 32
    assert config["train"]["iterations"] == 30


def test_calibration_names_its_conditions_and_candidates(calibrated):
    bundle = open_bundle(calibrated)
    assert bundle.default == "fast"
    held = bundle.calibrations["fast"]
    assert held.conditions == bundle.conditions("ddim", held.conditions.L, 50)
    assert held.conditions.L in (101, 201)
    assert len(held.candidates) == 4
    assert held.slices["split"] == "val"


def test_evaluation_prints_a_table_and_writes_json(calibrated, folder, tmp_path):
    said = call(evaluate, folder / "run/slices", "--bundle", calibrated, "--json",
                tmp_path / "figures.json")  # fmt: skip
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert f"| {figures['unhealthy']['dice']:.3f} |" in said
    assert figures["split"] == "test"


def test_inference_with_the_new_bundle(calibrated, tmp_path):
    volume = save(tmp_path / "v.nii.gz", head((32, 32, 6)))
    said = call(infer, volume, "-o", tmp_path / "m.nii.gz", "--bundle", calibrated, "--every-slice")
    mask = nib.load(tmp_path / "m.nii.gz")
    assert f"mask in {tmp_path / 'm.nii.gz'}" in said
    want = Segmenter.load(calibrated).segment(nib.load(volume), every_slice=True)
    assert np.array_equal(np.asarray(mask.dataobj), want.mask)
    assert np.allclose(mask.affine, nib.load(volume).affine)


def test_the_same_training_command_resumes(folder):
    before = load_checkpoint(folder / "run/model.pt")
    said = call(train, folder / "cohort", "-o", folder / "run", *SMALL, "--iterations", 30)
    assert "iteration" not in said
    after = load_checkpoint(folder / "run/model.pt")
    assert before.step == after.step == 30
    assert all(torch.equal(after.weights[name], value) for name, value in before.weights.items())


def test_another_cohort_or_other_options_need_another_folder(folder):
    config = (folder / "run/config.json").read_text()
    other = write_cohort(folder / "other", 8)
    said = call(train, other, "-o", folder / "run", *SMALL, "--iterations", 30, code=2)
    assert "was prepared from cohort with seed 0: name another" in said
    said = call(train, folder / "cohort", "-o", folder / "run", *SMALL, "--lr", "0.1", code=2)
    assert "made with other options" in said
    assert (folder / "run/config.json").read_text() == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--w", "1,x"], "give numbers"),
        (["--w", "-1"], "-1 is not possible"),
        (["--w", "nan"], "nan is not possible"),
        (["--length", "2000"], "the schedule has 1000"),
        (["--length", "300.5"], "300.5 is not possible"),
        (["--split", "none"], "no slices in split 'none'"),
    ],
)
def test_bad_calibration_options(folder, calibrated, options, message):
    before = {path.name: path.read_bytes() for path in calibrated.iterdir()}
    said = call(calibrate, folder / "run/slices", "--bundle", calibrated, *options, code=2)
    assert message in said
    assert said.count("\n") == 1
    assert {path.name: path.read_bytes() for path in calibrated.iterdir()} == before


def test_bad_training_options(tmp_path):
    assert "no preset" in call(train, tmp_path, "-o", tmp_path / "r", "--preset", "x", code=2)
    assert "must be a multiple" in call(
        train, tmp_path, "-o", tmp_path / "r", "--base-width", 20, code=2
    )
    assert "list the files in a CSV" in call(train, tmp_path, "-o", tmp_path / "r", code=2)


def test_dry_run_does_nothing(tmp_path):
    said = call(train, tmp_path, "-o", tmp_path / "r", "--dry-run", "--lr", "0.5")
    assert "lr=0.5" in said
    assert not (tmp_path / "r").exists()


def test_bad_export_inputs(folder, tmp_path):
    assert "does not exist" in call(export, "--ckpt", tmp_path / "x.pt", code=2)
    arguments = ["--ckpt", folder / "run/model.pt", "-o", tmp_path / "b", "--scored", "t9"]
    assert "--scored t9" in call(export, *arguments, code=2)
