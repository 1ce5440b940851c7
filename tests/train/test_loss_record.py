import shutil
import sys
from itertools import pairwise

import pytest
from support import ROOT, call, write_cohort

from anofpdm.runtime.errors import CheckpointError
from anofpdm.train import loop
from anofpdm.train.cli import main
from anofpdm.train.loss_record import LossRecord, read_losses

OPTIONS = ["--image-size", "32", "--pixel-mm", "7.5", "--base-width", "32", "--batch", "4",
           "--iterations", "6"]  # fmt: skip


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("losses") / "c")


@pytest.fixture(scope="module")
def whole(cohort):
    """A run that was not interrupted."""
    folder = cohort.parent / "whole"
    call(main, cohort, "-o", folder, *OPTIONS)
    return folder


@pytest.fixture
def same_losses(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import same_losses

    yield same_losses.main
    del sys.modules["same_losses"]


def test_a_run_leaves_one_line_an_iteration(whole):
    header, *lines = (whole / "losses.csv").read_text().splitlines()
    assert header == "iteration,loss"
    assert [line.split(",")[0] for line in lines] == list("123456")
    assert all(one != two for one, two in pairwise(read_losses(whole / "losses.csv").values()))


def test_a_run_in_pieces_leaves_the_same_file(cohort, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    call(main, cohort, "-o", run, *OPTIONS, "--stop-at", 2)
    # Killed after it recorded two more losses, and before it saved their checkpoint.
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", lambda *args: (_ for _ in ()).throw(OSError("full")))
        call(main, cohort, "-o", run, *OPTIONS, "--stop-at", 4, code=2)
    assert len(read_losses(run / "losses.csv")) == 4
    call(main, cohort, "-o", run, *OPTIONS)
    assert (run / "losses.csv").read_text() == (whole / "losses.csv").read_text()


def test_losses_keep_the_precision_of_float32(tmp_path):
    import numpy as np

    values = np.random.default_rng(0).random(200).astype(np.float32)
    record = LossRecord(tmp_path / "losses.csv", 0)
    for step, value in enumerate(values, start=1):
        record.add(step, float(value))
    record.flush()
    assert [np.float32(v) for v in read_losses(tmp_path / "losses.csv").values()] == list(values)


def test_the_record_is_written_when_it_is_flushed(tmp_path):
    record = LossRecord(tmp_path / "losses.csv", 0)
    record.add(1, 0.5)
    assert not (tmp_path / "losses.csv").exists()
    record.flush()
    record.add(2, 0.25)
    record.flush()
    assert (tmp_path / "losses.csv").read_text() == "iteration,loss\n1,0.5\n2,0.25\n"


def test_half_a_line_is_not_taken_for_an_earlier_one(tmp_path):
    path = tmp_path / "losses.csv"
    path.write_text("iteration,loss\n1,0.5\n2,0.25\n1")  # of 10,...
    LossRecord(path, 9).flush()
    assert path.read_text() == "iteration,loss\n1,0.5\n2,0.25\n"


@pytest.mark.parametrize("text", ["", "a,b\n", "iteration,loss\n1\n", "iteration,loss\n1,x\n"])
def test_damaged_records(tmp_path, text):
    (tmp_path / "losses.csv").write_text(text)
    with pytest.raises(CheckpointError, match="not a record of losses"):
        read_losses(tmp_path / "losses.csv")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_losses(tmp_path / "none.csv")


def test_the_command_gives_the_same_losses_again(whole, same_losses):
    said = call(same_losses, whole, "--iterations", 4)
    assert said.startswith("4 of 4 losses are equal; largest relative difference 0.0e+00")


def test_other_losses_are_noticed(whole, same_losses, tmp_path):
    for name in ("config.json", "losses.csv", "model.pt"):
        shutil.copy(whole / name, tmp_path)
    path = tmp_path / "losses.csv"
    lines = path.read_text().splitlines()
    lines[3] = f"3,{float(lines[3].split(',')[1]) * 1.00001:.9g}"
    path.write_text("\n".join(lines) + "\n")
    said = call(same_losses, tmp_path, "--slices", whole / "slices", code=1)
    assert "5 of 6 losses are equal; largest relative difference 1.0e-05, at iteration 3" in said
    path.write_text("\n".join(lines[:3]) + "\n")
    said = call(same_losses, tmp_path, "--slices", whole / "slices", code=2)
    assert "lacks iteration 3" in said


def test_what_a_run_began_with_is_needed_again(cohort, whole, same_losses, tmp_path):
    run = tmp_path / "run"
    call(main, cohort, "-o", run, *OPTIONS, "--init", whole / "model.pt", "--stop-at", 2)
    assert "name them with --init" in call(same_losses, run, "--iterations", 2, code=2)
    said = call(same_losses, run, "--iterations", 2, "--init", whole / "model.pt")
    assert said.startswith("2 of 2 losses are equal")
