"""The whole path once, two modalities of which one is scored: cohort -> checkpoint -> bundle ->
calibration -> metrics -> mask."""

import dataclasses
import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from support import call, head, save, write_cohort

from anofpdm import Segmenter
from anofpdm.calibrate.cli import main as calibrate
from anofpdm.calibrate.decision_fit import fit
from anofpdm.calibrate.evaluate_cli import main as evaluate
from anofpdm.export.bundle_update import write_calibration, write_manifest
from anofpdm.export.checkpoints import reference_grid
from anofpdm.export.cli import main as export
from anofpdm.runtime.bundle.bundle import open_bundle
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.cli.infer import main as infer
from anofpdm.runtime.method.decision import SliceStatistics
from anofpdm.runtime.volume.plausibility import Plausibility
from anofpdm.train.checkpoint import load_checkpoint
from anofpdm.train.cli import main as train
from anofpdm.train.dataset import open_sliceset

# A training and an export before the first test.
pytestmark = pytest.mark.slow
SMALL = ["--image-size", "32", "--pixel-mm", "7.5", "--base-width", "32", "--batch", "4",
         "--modalities", "flair,t2"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("path")
    cohort = write_cohort(folder / "cohort", 8, ("flair", "t2"))
    split = ["train", "train", "train", "train", "val", "val", "test", "test"]
    rows = [f"P{i:02d},{name}" for i, name in enumerate(split)]
    (cohort / "patients.csv").write_text("\n".join(["patient,split", *rows]) + "\n")
    call(train, cohort, "-o", folder / "run", *SMALL, "--iterations", 30)
    call(export, "--ckpt", folder / "run/model.pt", "-o", folder / "m.anofpdm",
         "--scored", "t2")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def calibrated(folder):
    output = call(calibrate, folder / "run/slices", "--bundle", folder / "m.anofpdm",
                "--stride", 50, "--length", "101,201", "--w", "1,3")  # fmt: skip
    assert "chosen: " in output
    assert "M_t peaks at t = " in output
    return folder / "m.anofpdm"


def test_run_folder_describes_itself(folder):
    config = json.loads((folder / "run/config.json").read_text())
    assert config["cohort"] == "cohort"
    assert config["unet"]["base_width"] == 32
    assert config["train"]["iterations"] == 30


def test_calibration_names_its_conditions_and_candidates(calibrated):
    bundle = open_bundle(calibrated)
    assert bundle.default == "fast"
    calibration = bundle.calibrations["fast"]
    assert calibration.conditions == bundle.conditions("ddim", calibration.conditions.L, 50)
    assert calibration.conditions.L in (101, 201)
    assert len(calibration.candidates) == 4
    assert calibration.slices["split"] == "val"
    left_out = calibration.slices["left_out_accuracy"]
    assert left_out[calibration.decision] == max(
        value for value in left_out.values() if value is not None
    )
    assert 0 <= calibration.peaks.at_L <= 1
    assert calibration.plausibility is None  # of two patients


def test_what_goes_beyond_the_paper_is_kept_and_calibrated_with(folder, calibrated, tmp_path):
    """Off by default; with it the curves, and so M_max, are those of flipped slices."""
    paper = open_bundle(calibrated).calibrations["fast"]
    assert paper.threshold_rule == "algorithm-1"
    assert (paper.neighbours_mm, paper.flip_tta) == (0.0, False)
    assert paper.guided_mm == 0.0
    other = shutil.copytree(calibrated, tmp_path / "m.anofpdm")
    alike = [folder / "run/slices", "--bundle", other, "--stride", 50, "--length", 101, "--w", "3"]
    call(calibrate, *alike, "--preset", "plain")
    call(calibrate, *alike, "--preset", "beyond", "--threshold-rule", "mean-with-otsu",
         "--neighbours", 12, "--flip-tta", "--guided", 9)  # fmt: skip
    made = open_bundle(other).calibrations
    beyond = made["beyond"]
    assert beyond.threshold_rule == "mean-with-otsu"
    assert (beyond.neighbours_mm, beyond.flip_tta) == (12.0, True)
    assert beyond.guided_mm == 9.0
    assert beyond.M_max != made["plain"].M_max
    assert beyond.Cos_w != made["plain"].Cos_w
    assert beyond.conditions == made["plain"].conditions
    # The decision was fitted to the statistics of the runtime.
    slices = open_sliceset(folder / "run/slices").split("val")
    segmenter = Segmenter.load(other, options=Options(preset="beyond"))
    results = sorted(segmenter.segment_slices(slices.slices()), key=lambda result: result.key)
    statistics = SliceStatistics(*(np.array([getattr(result, name) for result in results])
                        for name in ("cosine", "alignment", "map_peak")))  # fmt: skip
    fitted = fit(statistics, slices.unhealthy)
    log_odds = [result.log_odds for result in results]
    np.testing.assert_allclose(fitted.log_odds(statistics), log_odds, rtol=1e-3, atol=1e-3)


def test_warnings_of_the_calibration_are_printed_by_it_and_by_evaluation(
    folder, calibrated, tmp_path, monkeypatch
):
    other = shutil.copytree(calibrated, tmp_path / "m.anofpdm")
    monkeypatch.setattr("anofpdm.calibrate.cli.failures", lambda *args: ("no peak: x",))
    limits = Plausibility((9.0,), (1.0,), 1.0)
    monkeypatch.setattr("anofpdm.calibrate.cli.fit_plausibility", lambda *args: limits)
    arguments = [folder / "run/slices", "--bundle", other]
    output = call(calibrate, *arguments, "--stride", 50, "--length", 1, "--w", "1")
    assert "warning: no peak: x\n" in output
    assert open_bundle(other).calibrations["fast"].warnings == ("no peak: x",)
    output = call(evaluate, *arguments)
    assert "warning of the calibration: no peak: x\n" in output
    assert "unlike the volumes of the calibration: P06, P07\n" in output


def test_without_lengths_hundreds_up_to_the_manifests_L_are_tried(folder, calibrated, tmp_path):
    other = shutil.copytree(calibrated, tmp_path / "m.anofpdm")
    call(calibrate, folder / "run/slices", "--bundle", other, "--stride", 100, "--w", "1",
         "--decision", "cosine", "--preset", "p")  # fmt: skip
    calibration = open_bundle(other).calibrations["p"]
    assert [tried.L for tried in calibration.candidates] == [200, 300, 400, 500, 600]
    assert calibration.decision == "cosine"


def test_every_L_of_log_snr_spacing_is_swept(folder, calibrated, tmp_path):
    other = shutil.copytree(calibrated, tmp_path / "m.anofpdm")
    call(calibrate, folder / "run/slices", "--bundle", other, "--stride", 100, "--w", "1",
         "--spacing", "log-snr", "--length", "201,301", "--preset", "p")  # fmt: skip
    calibration = open_bundle(other).calibrations["p"]
    assert [tried.L for tried in calibration.candidates] == [201, 301]


def test_evaluation_prints_a_table_and_writes_json(calibrated, folder, tmp_path):
    output = call(evaluate, folder / "run/slices", "--bundle", calibrated, "--json",
                tmp_path / "figures.json")  # fmt: skip
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert f"| {figures['unhealthy']['dice']:.3f} [" in output
    assert figures["split"] == "test"


def test_inference_with_the_new_bundle(calibrated, tmp_path):
    """In order, by name, as a 4-D file and as a BraTS case: the same mask."""
    case = tmp_path / "case"
    case.mkdir()
    flair = save(case / "X_flair.nii.gz", head((32, 32, 6)))
    t2 = save(case / "X_t2.nii.gz", head((32, 32, 6), seed=5))
    both = np.stack([head((32, 32, 6)), head((32, 32, 6), seed=5)], axis=-1)
    four = save(tmp_path / "four.nii.gz", both)
    images = [nib.load(flair), nib.load(t2)]
    # A network of 30 iterations has a map of noise: half of it is marked.
    half = shutil.copytree(calibrated, tmp_path / "half.anofpdm")
    calibration = replace(open_bundle(half).calibrations["fast"], a=0.5, b=0.5)
    write_calibration(open_bundle(half), "fast", calibration)
    want = Segmenter.load(half).segment(images, every_slice=True)
    assert want.mask.any()
    assert want.slices[0].M.shape[1] == 1
    for given in ([flair, t2], ["--t2", t2, "--flair", flair], [four], [case],
                  ["--modality", f"t2={t2}", "--flair", flair]):  # fmt: skip
        out = tmp_path / "m.nii.gz"
        output = call(infer, *given, "-o", out, "--bundle", half, "--every-slice")
        assert f"mask in {out}" in output
        mask = nib.load(out)
        assert np.array_equal(np.asarray(mask.dataobj), want.mask)
        assert np.allclose(mask.affine, images[0].affine)
        out.unlink()
    assert want.mask.any()


def test_a_note_says_what_was_resampled(calibrated, tmp_path):
    flair = save(tmp_path / "f.nii.gz", head((32, 32, 6)))
    t2 = save(tmp_path / "t.nii.gz", head((16, 16, 6)), np.diag([15.0, 15.0, 5.0, 1.0]))
    output = call(infer, flair, t2, "-o", tmp_path / "m.nii.gz", "--bundle", calibrated)
    assert "note: t.nii.gz was resampled onto the grid of f.nii.gz\n" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--flair", "f.nii.gz"], "t2 is missing: the model expects flair, t2"),
        (["f.nii.gz"], "the model expects (X, Y, Z, 2)"),
        (["f.nii.gz", "f.nii.gz", "f.nii.gz"], "3 images given, the model expects 2"),
        (["f.nii.gz", "--t2", "f.nii.gz"], "not both"),
        (["--modality", "t2", "--flair", "f.nii.gz"], "write NAME=FILE"),
        (["--modality", "t2=f.nii.gz", "--t2", "f.nii.gz"], "t2 is given twice"),
        (["."], "is a folder without *_flair.nii.gz"),
        (["f.nii.gz", "f.nii.gz", "--preset", "x"], "has no preset 'x': it has fast"),
    ],
)
def test_bad_choices_at_inference(calibrated, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "f.nii.gz", head((32, 32, 6)))
    output = call(infer, *options, "-o", "m.nii.gz", "--bundle", calibrated, code=2)
    assert message in output
    assert output.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["f.nii.gz"]


def test_set_ups_from_the_command_line(folder, calibrated, tmp_path):
    """Each calibrated under its name, picked at inference and evaluated; the default stays."""
    slices = folder / "run/slices"
    for options in (["--encoding", "ddpm"], ["--anomaly-map", "last", "--preset", "last"],
                    ["--stride", "60", "--spacing", "log-snr", "--preset", "snr"]):  # fmt: skip
        output = call(calibrate, slices, "--bundle", calibrated, "--stride", 50, "--length", 101,
                    "--w", "1,3", *options)  # fmt: skip
        assert "written to" in output
    bundle = open_bundle(calibrated)
    assert list(bundle.calibrations) == ["fast", "ddpm-fast", "last", "snr"]
    call(calibrate, slices, "--bundle", calibrated, "--stride", 50, "--length", 101, "--w", "1,3",
         "--preset", "mean")  # fmt: skip
    last, mean = (open_bundle(calibrated).calibrations[name] for name in ("last", "mean"))
    assert last.candidates[0].Cos_w == mean.candidates[0].Cos_w
    assert last.candidates[0].logistic != mean.candidates[0].logistic  # each knows its own map
    for calibration in (last, mean):
        chosen = next(tried for tried in calibration.candidates if tried.w == calibration.w)
        assert calibration.logistic == chosen.logistic
    assert bundle.default == "fast"
    for options, expected in (
        (["--preset", "ddpm-fast", "--w", "1"], {"preset": "ddpm-fast", "w": 1.0}),
        (["--preset", "last"], {"anomaly_map": {"anomaly_map": "last"}}),
        (["--preset", "snr"], {"conditions": {"spacing": "log-snr"}}),
        (["--sub-map", "gradient", "--threshold", "0.1"], {"threshold": 0.1}),
    ):
        figures = tmp_path / "figures.json"
        call(evaluate, slices, "--bundle", calibrated, "--json", figures, *options)
        written = json.loads(figures.read_text())
        for name, value in expected.items():
            if isinstance(value, dict):
                assert value.items() <= written[name].items()
            else:
                assert written[name] == value


def test_the_same_training_command_resumes(folder):
    before = load_checkpoint(folder / "run/model.pt")
    output = call(train, folder / "cohort", "-o", folder / "run", *SMALL, "--iterations", 30)
    assert "iteration" not in output
    after = load_checkpoint(folder / "run/model.pt")
    assert before.step == after.step == 30
    assert all(torch.equal(after.weights[name], value) for name, value in before.weights.items())


def test_slices_prepared_for_a_bundle_fit_it(folder, tmp_path):
    """A grid and modalities that the options would not give: those of the authors' code."""
    bundle = tmp_path / "b.anofpdm"
    bundle.mkdir()
    manifest = open_bundle(folder / "m.anofpdm").manifest
    grid = reference_grid(32)
    (bundle / "unet.onnx").write_bytes((folder / "m.anofpdm/unet.onnx").read_bytes())
    files = {"unet.onnx": manifest.files["unet.onnx"]}
    write_manifest(bundle, dataclasses.replace(manifest, grid=grid, files=files))
    call(train, folder / "cohort", "-o", tmp_path / "p", "--bundle", bundle)
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["slices"]
    for option in (["--modalities", "flair"], ["--pixel-mm", "2"], ["--iterations", "9"]):
        output = call(train, folder / "cohort", "-o", tmp_path / "p", "--bundle", bundle, *option,
                    code=2)  # fmt: skip
        assert "leave out the other options" in output
    slices = open_sliceset(tmp_path / "p/slices")
    assert (slices.modalities, slices.grid) == (("flair", "t2"), grid)
    output = call(calibrate, tmp_path / "p/slices", "--bundle", bundle, "--stride", 100,
                "--length", 201, "--w", "1")  # fmt: skip
    assert "as preset fast" in output


def test_another_cohort_or_other_options_need_another_folder(folder):
    config = (folder / "run/config.json").read_text()
    other = write_cohort(folder / "other", 8, ("flair", "t2"))
    output = call(train, other, "-o", folder / "run", *SMALL, "--iterations", 30, code=2)
    assert "was prepared from cohort with seed 0: name another" in output
    output = call(train, folder / "cohort", "-o", folder / "run", *SMALL, "--lr", "0.1", code=2)
    assert "made with other options" in output
    assert (folder / "run/config.json").read_text() == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--w", "1,x"], "give numbers"),
        (["--w", "-1"], "-1 is not possible"),
        (["--w", "nan"], "nan is not possible"),
        (["--w", "1e39"], "1e+39 is not possible"),
        (["--length", "2000"], "the schedule has 1000"),
        (["--length", "300.5"], "300.5 is not possible"),
        (["--split", "none"], "no slices in split 'none'"),
        (["--w", ""], "give numbers"),
        (["--every", "6"], "are all healthy: no accuracy can be computed"),
    ],
)
def test_bad_calibration_options(folder, calibrated, options, message):
    before = {path.name: path.read_bytes() for path in calibrated.iterdir()}
    output = call(calibrate, folder / "run/slices", "--bundle", calibrated, *options, code=2)
    assert message in output
    assert output.count("\n") == 1
    assert {path.name: path.read_bytes() for path in calibrated.iterdir()} == before


def test_bad_training_options(tmp_path):
    assert "no preset" in call(train, tmp_path, "-o", tmp_path / "r", "--preset", "x", code=2)
    assert "must be a multiple" in call(
        train, tmp_path, "-o", tmp_path / "r", "--base-width", 20, code=2
    )
    assert "list the files in a CSV" in call(train, tmp_path, "-o", tmp_path / "r", code=2)


def test_dry_run_does_nothing(tmp_path):
    output = call(train, tmp_path, "-o", tmp_path / "r", "--dry-run", "--lr", "0.5")
    assert json.loads(output)["train"]["lr"] == 0.5
    assert not (tmp_path / "r").exists()


def test_bad_export_inputs(folder, tmp_path):
    assert "does not exist" in call(export, "--ckpt", tmp_path / "x.pt", code=2)
    arguments = ["--ckpt", folder / "run/model.pt", "-o", tmp_path / "b", "--scored", "t9"]
    assert "--scored t9: the modalities are flair, t2" in call(export, *arguments, code=2)
    arguments[-1] = "flair,flair"
    assert "--scored flair,flair: give different names" in call(export, *arguments, code=2)
    arguments = ["--ckpt", folder / "run/model.pt", "--modalities", "flair,"]
    assert "--modalities flair,: give different names" in call(export, *arguments, code=2)
    assert not (tmp_path / "b").exists()
