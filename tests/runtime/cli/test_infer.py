"""The command as users run it, in processes of its own, on the embedded default bundle."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from support import head, needs_bf16, save, write_toy_bundle

from anofpdm.runtime.backends.cuda.device import gpu_is_present
from anofpdm.runtime.bundle.bundle import DEFAULT, MANIFEST

NO_TORCH = """
import sys
for name in ("torch", "onnx"):
    sys.modules[name] = None
from anofpdm.runtime.cli.infer import main
main()
"""


def infer(*arguments, cwd=None, env=None, script=NO_TORCH):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=cwd, env=env, timeout=300,
    )  # fmt: skip


@pytest.fixture
def volume(tmp_path):
    return save(tmp_path / "volume.nii.gz", head((80, 96, 3)), np.diag([2.0, 2.0, 5.0, 1]))


def test_without_torch_a_volume_becomes_a_mask_and_nothing_else_is_written(tmp_path, volume):
    home = tmp_path / "home"
    home.mkdir()
    # In CI variables, onnxruntime sees a reason to keep quiet; it must keep quiet without.
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")}
    env = {**kept, "HOME": str(home), "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = infer("volume.nii.gz", "-o", "mask.nii.gz", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    if gpu_is_present():
        assert lines.pop(0).startswith("device: ")
    # An ellipsoid is not a head.
    assert len(lines) == 1
    assert lines[0].startswith("note: unlike the volumes of the calibration")
    assert done.stdout.count("\n") == 1
    assert "mask in mask.nii.gz" in done.stdout
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert written == {"home", "volume.nii.gz", "mask.nii.gz"}
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == (80, 96, 3)
    assert set(np.unique(mask.dataobj)) <= {0, 1}


def bad_inputs(folder):
    """name -> (arguments, message). The folder holds a good volume.nii.gz."""
    (folder / "text.nii.gz").write_text("not an image")
    (folder / "empty.nii").write_bytes(b"")
    whole = (folder / "volume.nii.gz").read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    unzipped = gzip.decompress(whole)
    (folder / "short.nii").write_bytes(unzipped[: len(unzipped) // 2])
    nib.save(nib.MGHImage(head(), np.eye(4)), folder / "other.mgz")
    save(folder / "nan.nii.gz", head() * np.nan)
    save(folder / "four.nii.gz", np.stack([head()] * 2, -1))
    newer = folder / "newer.anofpdm"
    write_toy_bundle(newer)
    manifest = json.loads((newer / MANIFEST).read_text())
    (newer / MANIFEST).write_text(json.dumps({**manifest, "schema_version": 99}))
    altered = folder / "altered.anofpdm"
    shutil.copytree(DEFAULT, altered)
    with (altered / "unet.onnx").open("ab") as file:
        file.write(b"x")
    out = ["-o", "out.nii.gz"]
    return {
        "not there": (["nowhere.nii.gz", *out], "does not exist"),
        "a folder": ([".", *out], "is a folder"),
        "not NIfTI": (["text.nii.gz", *out], "not a readable NIfTI"),
        "empty": (["empty.nii", *out], "not a readable NIfTI"),
        "another format": (["other.mgz", *out], "not NIfTI"),
        "truncated gzip": (["truncated.nii.gz", *out], "truncated or damaged"),
        "truncated": (["short.nii", *out], "truncated or damaged"),
        "NaN": (["nan.nii.gz", *out], "NaN or infinite"),
        "4-D": (["four.nii.gz", *out], "has shape"),
        "too many modalities": (["volume.nii.gz"] * 2 + out, "expects 1"),
        "output folder missing": (["volume.nii.gz", "-o", "no/out.nii.gz"], "does not exist"),
        "output is a folder": (["volume.nii.gz", "-o", "folder.nii.gz"], "is a folder"),
        "output is the input": (["volume.nii.gz", "-o", "volume.nii.gz"], "it is the input"),
        "output is no NIfTI": (["volume.nii.gz", "-o", "out.png"], "name it .nii or .nii.gz"),
        "bundle missing": (["volume.nii.gz", *out, "--bundle", "x"], "does not exist"),
        "bundle altered": (["volume.nii.gz", *out, "--bundle", altered], "was altered"),
        "bundle newer": (["volume.nii.gz", *out, "--bundle", newer], "bundle schema 99"),
    }


def test_bad_input_is_one_line_exit_2_and_no_output(tmp_path, volume):
    (tmp_path / "folder.nii.gz").mkdir()
    cases = bad_inputs(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    original = volume.read_bytes()
    for name, (arguments, message) in cases.items():
        done = infer(*arguments, cwd=tmp_path)
        assert done.returncode == 2, (name, done)
        assert done.stderr.count("\n") == 1, (name, done.stderr)
        assert done.stderr.startswith("error: "), name
        assert message in done.stderr, (name, done.stderr)
        assert done.stdout == "", name
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert volume.read_bytes() == original


def test_read_only_output_folder(tmp_path, volume, monkeypatch):
    """Checks through access(2), which lets root pass: so the answer is given by hand."""
    from click.testing import CliRunner

    from anofpdm.runtime.cli.infer import main

    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    done = CliRunner().invoke(main, [str(volume), "-o", str(tmp_path / "out.nii.gz")])
    assert done.exit_code == 2
    assert "is read-only" in done.output
    assert not (tmp_path / "out.nii.gz").exists()


def test_a_missing_runtime_names_the_extra(tmp_path, volume):
    script = NO_TORCH.replace('("torch", "onnx")', '("onnxruntime",)')
    done = infer(volume, "-o", tmp_path / "out.nii.gz", script=script)
    assert done.returncode == 2
    assert "pip install 'anofpdm[cpu]'" in done.stderr


def test_help_and_version():
    assert "flair.nii.gz -o mask.nii.gz" in infer("--help").stdout
    assert infer("--version").stdout.startswith("anofpdm ")


WATCHED = """
import atexit, json, os, sys

events = []

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, (str, bytes)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            events.append([event, os.path.abspath(os.fsdecode(path))])
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"):
        if arguments[-1] == -1:  # else the path is relative to an open folder
            events.append([event, os.path.abspath(os.fsdecode(arguments[0]))])
    elif event == "os.rename":
        events.append([event, os.path.abspath(os.fsdecode(arguments[1]))])
    elif event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn")):
        events.append([event, repr(arguments)])

report = os.environ["EVENTS"]

def tell():
    seen = list(events)
    with open(report, "w") as file:
        json.dump(seen, file)

atexit.register(tell)
sys.addaudithook(watch)
from anofpdm.runtime.cli.infer import main
main()
"""


@pytest.mark.parametrize("preset", ["fastest", "fastest-bf16"])
def test_nothing_is_sent_and_nothing_written_but_the_outputs(tmp_path, volume, preset):
    """Every file that Python opens to write, every name it changes, every socket and process. Only
    pictures take a folder for temporary files, and leave nothing in it."""
    if preset.endswith("bf16"):
        needs_bf16()
    out, temporary, events = tmp_path / "out", tmp_path / "temporary", tmp_path / "events.json"
    out.mkdir()
    temporary.mkdir()
    env = {**os.environ, "EVENTS": str(events), "PYTHONDONTWRITEBYTECODE": "1",
           "TMPDIR": str(temporary)}  # fmt: skip
    kinds = [f"--also={kind}" for kind in ("map", "stats", "trace", "preview", "report")]
    done = infer(volume, "-o", out / "mask.nii.gz", "--preset", preset, *kinds,
                 env=env, script=WATCHED, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(events.read_text())
    assert any(event == "os.rename" and path.endswith("mask.nii.gz") for event, path in seen)
    elsewhere = [
        (event, what)
        for event, what in seen
        if not any(map(Path(what).is_relative_to, (out, temporary)))
        and "fc-list" not in what  # matplotlib's, for the fonts of the system
    ]
    assert not elsewhere, elsewhere
    assert list(temporary.iterdir()) == []
    assert len(list(out.iterdir())) == 6


@pytest.mark.parametrize("preset", ["fastest", "fastest-bf16"])
def test_it_works_where_there_is_no_network(tmp_path, volume, preset):
    if preset.endswith("bf16"):
        needs_bf16()
    alone = ["unshare", "--map-root-user", "--net"]
    possible = shutil.which("unshare") and subprocess.run([*alone, "true"], check=False).returncode
    if possible != 0:
        pytest.skip("needs unshare and the right to make a network namespace")
    done = subprocess.run(
        [*alone, sys.executable, "-c", NO_TORCH, str(volume), "-o", "mask.nii.gz",
         "--preset", preset],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mask.nii.gz").is_file()
