import json
from itertools import pairwise

import pytest
from support import call, write_cohort

from anofpdm.runtime.errors import CheckpointError
from anofpdm.train import loop
from anofpdm.train.checkpoint import load_checkpoint
from anofpdm.train.cli import main
from anofpdm.train.config import RunConfig
from anofpdm.train.dataset import open_sliceset
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


def losses_again(run, folder, slices=None, init=None, stop_at=None):
    """The losses of another run with the configuration, and on the slices, of a run."""
    config = RunConfig.parse(json.loads((run / "config.json").read_text()))
    return loop.train(
        open_sliceset(slices or run / "slices").split("train"), config.unet, config.train,
        folder / "again.pt", data={}, init=init, stop_at=stop_at,
    )  # fmt: skip


def test_a_run_leaves_one_line_an_iteration(whole):
    header, *lines = (whole / "losses.csv").read_text().splitlines()
    assert header == "iteration,loss"
    assert [line.split(",")[0] for line in lines] == list("123456")
    assert all(a != b for a, b in pairwise(read_losses(whole / "losses.csv").values()))


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


def test_the_configuration_gives_the_same_losses_again(whole, tmp_path):
    recorded = read_losses(whole / "losses.csv")
    again = losses_again(whole, tmp_path, stop_at=4)
    assert [float(f"{loss:.9g}") for loss in again] == [recorded[step] for step in range(1, 5)]


def test_another_seed_gives_other_losses(whole, tmp_path):
    content = json.loads((whole / "config.json").read_text())
    content["train"]["seed"] = 1
    (tmp_path / "config.json").write_text(json.dumps(content))
    again = losses_again(tmp_path, tmp_path, slices=whole / "slices", stop_at=2)
    recorded = read_losses(whole / "losses.csv")
    assert all(loss != recorded[step] for step, loss in enumerate(again, start=1))


def test_the_initial_checkpoint_is_needed_for_the_same_losses(cohort, whole, tmp_path):
    run = tmp_path / "run"
    call(main, cohort, "-o", run, *OPTIONS, "--init", whole / "model.pt", "--stop-at", 2)
    recorded = list(read_losses(run / "losses.csv").values())
    assert load_checkpoint(run / "model.pt").data["begun_with"]["iterations"] == 6
    init = load_checkpoint(whole / "model.pt")
    again = losses_again(run, tmp_path, init=init, stop_at=2)
    assert [float(f"{loss:.9g}") for loss in again] == recorded
    (tmp_path / "again.pt").unlink()
    assert losses_again(run, tmp_path, stop_at=2)[0] != again[0]
