"""``anofpdm-infer``: its options, outputs and messages; with a toy network in place of the model,
so that only the command is tested."""

import csv
import json
import resource
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from dicom_files import write_series
from support import ROOT, bundle, head, save, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.cli import infer
from anofpdm.runtime.cli.batch import TABLE
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.cli.request import parse_request
from anofpdm.runtime.segmenter import Segmenter

AFFINE = np.diag([7.5, 7.5, 5.0, 1.0])
KINDS = {"map": "map.nii.gz", "stats": "stats.json", "trace": "trace.json"}


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """Loads a toy in place of any bundle; counts how often."""
    made = bundle(modalities=("flair",), scored=("flair",))
    loaded = []

    def load(model, **options):
        loaded.append(options)
        return Segmenter(model, NumpyBackend(toy_network), seed=options["seed"])

    monkeypatch.setattr(infer, "open_bundle", lambda path: made)
    monkeypatch.setattr(infer.Segmenter, "load", load)
    monkeypatch.chdir(tmp_path)
    return loaded


@pytest.fixture
def volume(tmp_path):
    return save(tmp_path / "P1_flair.nii.gz", head(), AFFINE)


def run(*arguments, code=0):
    done = CliRunner().invoke(infer.main, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_without_output_the_mask_is_named_after_the_input(toy, volume, tmp_path):
    assert "mask in P1_desc-anofpdm_mask.nii.gz" in run(volume).stdout
    assert names(tmp_path) == {volume.name, "P1_desc-anofpdm_mask.nii.gz"}


@pytest.mark.parametrize(
    ("name", "case"),
    [("upside.nii", "upside"), ("a.b.nii.gz", "a.b"), ("case 1.nii.gz", "case 1"),
     ("pair.hdr", "pair"), ("pair.img", "pair"), ("P1_flair.nii", "P1_flair")],
)  # fmt: skip
def test_a_volume_is_called_by_its_file_without_the_suffix(tmp_path, name, case):
    (tmp_path / name).touch()
    assert parse_request([tmp_path / name], {}, None, {}, (), ("flair",)).name == case


def test_every_output_of_one_volume(toy, volume, tmp_path):
    run(volume, "-o", "mask.nii.gz", *(f"--{kind}={name}" for kind, name in KINDS.items()))
    assert names(tmp_path) == {volume.name, "mask.nii.gz", *KINDS.values()}
    segmentation = Segmenter(bundle(), NumpyBackend(toy_network)).segment(nib.load(volume))
    mask, H = nib.load("mask.nii.gz"), nib.load("map.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), segmentation.mask)
    assert H.get_data_dtype() == np.float32
    np.testing.assert_array_equal(H.affine, nib.load(volume).affine)
    # Where the map lies: masks are cut where it is high.
    marked, values = segmentation.mask > 0, H.get_fdata()
    assert marked.any()
    assert values[marked].mean() > 2 * values[~marked].mean()
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert stats["volume_ml"] == pytest.approx(segmentation.mask.sum() * 7.5 * 7.5 * 5 / 1000)


def test_also_names_files_after_the_mask(toy, volume, tmp_path):
    (tmp_path / "out").mkdir()
    run(volume, "-o", "out/x_mask.nii.gz", "--also", "map", "--also", "stats")
    assert names(tmp_path / "out") == {
        "x_mask.nii.gz", "x_desc-anofpdm_map.nii.gz", "x_desc-anofpdm_stats.json",
    }  # fmt: skip


def test_files_are_replaced_unless_that_is_ruled_out(toy, volume, tmp_path):
    (tmp_path / "m.nii.gz").write_bytes(b"something")
    done = run(volume, "-o", "m.nii.gz", "--no-overwrite", code=2)
    assert "m.nii.gz is there already" in done.output
    assert (tmp_path / "m.nii.gz").read_bytes() == b"something"
    assert not toy, "the model need not be loaded for that"
    run(volume, "-o", "m.nii.gz")
    assert nib.load("m.nii.gz").shape == head().shape


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--map", "m.nii.gz"], "it is the mask"),
        (["--map", "map.png"], "name it .nii or .nii.gz"),
        (["--stats", "P1_flair.nii.gz"], "it is the input"),
        (["--report", "no/report.html"], "does not exist"),
        (["--dicom-seg", "seg.dcm"], "no DICOM series"),
        (["--series", "1.2.3"], "no DICOM folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(toy, volume, tmp_path, wrong, message):
    before = names(tmp_path)
    done = run(volume, "-o", "m.nii.gz", *wrong, code=2)
    assert message in done.output
    assert done.output.count("\n") == 1
    assert names(tmp_path) == before
    assert not toy


def test_a_folder_of_cases_loads_the_model_once_and_ends_with_3_if_some_failed(toy, tmp_path):
    cases = tmp_path / "cases"
    cases.mkdir()
    for i in range(3):
        save(cases / f"P{i}.nii.gz", head(seed=i), AFFINE)
    (cases / "bad.nii.gz").write_bytes(b"no image")
    done = run(cases, "-o", "out", "--also", "map", code=3)
    assert len(toy) == 1
    assert done.stdout.splitlines()[-1] == "3 of 4 cases done, 1 failed: table in out/anofpdm.csv"
    assert "failed: bad: " in done.stderr
    rows = list(csv.DictReader((tmp_path / "out" / TABLE).read_text().splitlines()))
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "failed"]
    assert {"P0_desc-anofpdm_mask.nii.gz", "P2_desc-anofpdm_map.nii.gz"} < names(tmp_path / "out")
    (cases / "bad.nii.gz").unlink()
    assert run(cases, "-o", "out", "--also", "map").stdout.count("from before") == 3


def test_folders_that_are_one_series_and_folders_that_are_many_cases(toy, tmp_path):
    stored = np.round(head()).astype(np.int16)
    (tmp_path / "disc").mkdir()
    write_series(tmp_path / "disc/IMAGES", stored, AFFINE)
    run("disc", "-o", "one.nii.gz")
    run("disc/IMAGES", "-o", "many")
    mask = (tmp_path / "many/IMAGES_desc-anofpdm_mask.nii.gz").read_bytes()
    assert (tmp_path / "one.nii.gz").read_bytes() == mask
    for name in "ab":
        save(tmp_path / "disc" / f"{name}_flair.nii.gz", head(), AFFINE)
    run("disc")  # two cases: no longer one
    assert "a_desc-anofpdm_mask.nii.gz" in names(tmp_path / "disc-anofpdm")


def test_results_do_not_go_where_the_cases_are(toy, tmp_path):
    (tmp_path / "cases").mkdir()
    save(tmp_path / "cases/P1.nii.gz", head(), AFFINE)
    assert "it is the input" in run("cases", "-o", "cases/../cases", code=2).output
    assert names(tmp_path / "cases") == {"P1.nii.gz"}


def test_folders_for_results_are_made(toy, tmp_path):
    (tmp_path / "cases").mkdir()
    save(tmp_path / "cases/P1.nii.gz", head(), AFFINE)
    save(tmp_path / "cases/P1_seg.nii.gz", head(), AFFINE)
    done = run("cases", "-o", "derivatives/anofpdm")
    assert "note: 1 NIfTI files of cases are no cases: P1_seg.nii.gz" in done.stderr
    assert "P1_desc-anofpdm_mask.nii.gz" in names(tmp_path / "derivatives/anofpdm")


def test_a_folder_may_have_a_dot_in_its_name(toy, tmp_path):
    (tmp_path / "cases").mkdir()
    save(tmp_path / "cases/P1.nii.gz", head(), AFFINE)
    run("cases", "-o", "results-1.2")
    assert "P1_desc-anofpdm_mask.nii.gz" in names(tmp_path / "results-1.2")


def test_a_folder_for_one_volume(toy, volume, tmp_path):
    (tmp_path / "out").mkdir()
    run(volume, "-o", "out", "--also", "map")
    assert names(tmp_path / "out") == {
        "P1_desc-anofpdm_mask.nii.gz", "P1_desc-anofpdm_map.nii.gz",
    }  # fmt: skip


def test_a_mask_of_ours_is_no_scan(toy, volume):
    run(volume, "-o", "mask.nii.gz", "--map", "map.nii.gz")
    for name in ("mask.nii.gz", "map.nii.gz"):
        assert "name the scan" in run(name, "-o", "again.nii.gz", code=2).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "an empty name"),
        (["v.nii", "--threads", "0"], "--threads"),
        (["v.nii", "--also", "seg"], "--also"),
        (["v.nii", "--nothing"], "--nothing"),
        (["v.nii", "-o"], "-o"),
    ],
)
def test_wrong_options_are_refused_in_one_line(toy, arguments, message):
    printed = run(*arguments, code=2).output
    assert printed.count("\n") == 1
    assert printed.startswith("error: ")
    assert message in printed


def test_a_link_to_the_input_is_the_input(toy, volume, tmp_path):
    (tmp_path / "hard.nii.gz").hardlink_to(volume)
    before = volume.read_bytes()
    assert "it is the input" in run(volume, "-o", "hard.nii.gz", code=2).output
    assert volume.read_bytes() == before


def test_results_of_a_folder_are_named_after_it(toy, tmp_path):
    (tmp_path / "cases").mkdir()
    save(tmp_path / "cases/P1.nii.gz", head(), AFFINE)
    run("cases")
    assert "P1_desc-anofpdm_mask.nii.gz" in names(tmp_path / "cases-anofpdm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cases", "-o", "m.nii.gz"], "is a folder"),
        (["cases", "-o", "out", "--map", "m.nii.gz"], "give --also map"),
        (["cases", "-o", "cases/P1.nii.gz/out"], "is a file"),
        (["empty", "-o", "out"], "no cases"),
        (["cases", "-o", "out", "--series", "1.2"], "goes with one DICOM folder"),
        (["cases", "-o", "P.png"], "name a mask .nii or .nii.gz, or a folder"),
        (["mistyped", "-o", "out"], "mistyped does not exist"),
    ],
)
def test_folders_that_cannot_be_run(toy, tmp_path, arguments, message):
    (tmp_path / "cases").mkdir()
    (tmp_path / "empty").mkdir()
    save(tmp_path / "cases/P1.nii.gz", head(), AFFINE)
    before = names(tmp_path)
    done = run(*arguments, code=2)
    assert message in done.output
    assert done.output.count("\n") == 1
    assert names(tmp_path) == before


def test_a_dicom_series_gives_the_mask_of_its_volume_and_a_seg(toy, volume, tmp_path):
    import highdicom

    stored = np.round(head()).astype(np.int16)
    save(tmp_path / "as.nii.gz", stored, AFFINE)
    write_series(tmp_path / "series", stored, AFFINE)
    run("as.nii.gz", "-o", "want.nii.gz")
    run("series", "-o", "mask.nii.gz", "--dicom-seg", "seg.dcm", "--stats", "stats.json")
    want, got = nib.as_closest_canonical(nib.load("want.nii.gz")), nib.load("mask.nii.gz")
    got = nib.as_closest_canonical(got)
    np.testing.assert_allclose(got.affine, want.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(got.dataobj), np.asarray(want.dataobj))
    assert np.asarray(want.dataobj).any()
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    algorithm = seg.get_segment_description(1).algorithm_identification
    assert algorithm.name == "toy"
    assert seg.get_volume(combine_segments=True).array.sum() == np.asarray(got.dataobj).sum()
    inputs = json.loads((tmp_path / "stats.json").read_text())["inputs"]
    assert list(inputs[0]["files_sha256"]) == [f"{stored.shape[2]} files"]


def test_quiet_prints_nothing_and_verbose_prints_the_set_up(toy, volume):
    assert run(volume, "-o", "m.nii.gz", "-q").output == ""
    printed = run(volume, "-o", "m.nii.gz", "-v").stderr
    assert "model toy" in printed
    assert "preset fast: ddim, L 301, stride 60; seed 0" in printed
    assert "mask in m.nii.gz" in printed


def test_version_names_package_model_and_engine():
    printed = run("--version").stdout
    model = open_bundle(DEFAULT)
    assert printed.startswith(
        f"anofpdm 0.1.0, model {model.manifest.name} (sha256 {model.sha256[:16]}"
    )
    assert "onnxruntime 1." in printed


def test_help_has_examples_and_exit_codes():
    printed = run("--help").stdout
    for part in ("anofpdm-infer flair.nii.gz -o mask.nii.gz", "--dicom-seg", "3 some cases",
                 "130", "not for diagnosis"):  # fmt: skip
        assert part in printed


def test_shells_can_complete(tmp_path):
    script = "from anofpdm.runtime.cli.infer import main; main(prog_name='anofpdm-infer')"
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={"_ANOFPDM_INFER_COMPLETE": f"{shell}_source", "PATH": "/usr/bin:/bin",
                 "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "anofpdm-infer" in done.stdout, done.stderr


def test_progress_has_slices_steps_and_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(ProgressLine, "_open", False)
    line = ProgressLine("slices", 13)
    line(3, 55)
    shown = capsys.readouterr().err
    assert "\rslices 3/55 (step 39 of 715), " in shown
    assert shown.rstrip().endswith("s left")


def test_an_error_in_the_middle_of_a_run_has_a_line_of_its_own(toy, volume, monkeypatch):
    monkeypatch.setattr(ProgressLine, "_open", True)
    done = run(volume, "-o", "m.nii.gz", "--map", "m.nii.gz", code=2)
    assert done.stderr.startswith("\nerror: ")


WRITE = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.path.insert(0, sys.argv[2])
from support import bundle, toy_network
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.cli import infer
from anofpdm.runtime.segmenter import Segmenter
toy = bundle(modalities=("flair",), scored=("flair",))
infer.open_bundle = lambda path: toy
infer.Segmenter.load = lambda model, **options: Segmenter(model, NumpyBackend(toy_network))
infer.main(sys.argv[3:])
"""


@pytest.mark.parametrize("room", [0, 300, 3000])
def test_a_full_disk_leaves_nothing(volume, tmp_path, room):
    """The limit on a file's size stands for it: writing fails in the middle."""
    rng = np.random.default_rng(0)
    save(volume, head() + rng.random((24, 28, 10)).astype(np.float32), AFFINE)
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(room), str(ROOT / "tests"), str(volume),
         "-o", "m.nii.gz", "--map", "map.nii.gz", "--trace", "t.json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == {volume.name}
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
