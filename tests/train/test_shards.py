import pytest
import torch
from click.testing import CliRunner
from support import write_cohort

from anofpdm.export.source import read_source
from anofpdm.runtime.errors import CheckpointError, OutputError
from anofpdm.runtime.grid import Grid
from anofpdm.train import shards
from anofpdm.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from anofpdm.train.config import TrainConfig, unet_config
from anofpdm.train.main import main
from anofpdm.train.shards import save_sharded, shard_folder
from anofpdm.train.unet import UNet

LIMIT = 100_000


def checkpoint(step=1, seed=0):
    torch.manual_seed(seed)
    config = unet_config("light", 1, 32, base_width=32)
    # Without zeros, or shards of two checkpoints would be the same.
    weights = {name: value + torch.randn_like(value)
               for name, value in UNet(config).state_dict().items()}  # fmt: skip
    return Checkpoint(config, TrainConfig(), ("flair",), Grid(32, 7.5), step, weights, weights,
                      {"state": {0: {"exp_avg": torch.ones(3)}}}, {"slices": 7})  # fmt: skip


def files(path):
    return sorted(file for file in shard_folder(path).iterdir())


def same(one, two):
    assert (one.config, one.step, one.data) == (two.config, two.step, two.data)
    assert one.weights.keys() == two.weights.keys()
    for name, value in one.weights.items():
        assert torch.equal(value, two.weights[name]), name


def test_a_checkpoint_in_pieces_is_the_checkpoint(tmp_path):
    path, made = tmp_path / "model.pt", checkpoint()
    save_checkpoint(made, path, LIMIT)
    sizes = [file.stat().st_size for file in files(path)]
    largest = max(value.nbytes for value in made.weights.values())
    assert largest > LIMIT, "no tensor had to be split"
    assert len(sizes) > 3
    assert max(sizes) <= LIMIT
    assert path.stat().st_size < LIMIT / 10
    same(load_checkpoint(path), made)
    same(read_source(path), made)
    assert torch.equal(load_checkpoint(path).optimizer["state"][0]["exp_avg"], torch.ones(3))


def test_what_the_index_does_not_list_is_removed(tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(checkpoint(1, seed=1), path, LIMIT)
    before = {file.name for file in files(path)}
    (shard_folder(path) / ".0000-half-written").write_bytes(b"x")
    save_checkpoint(checkpoint(2, seed=2), path, LIMIT)
    listed = [shard["name"] for shard in torch.load(path, weights_only=True)["shards"]]
    assert [file.name for file in files(path)] == sorted(listed)
    assert not before & set(listed)
    save_checkpoint(checkpoint(3), path)
    assert not shard_folder(path).exists()
    assert load_checkpoint(path).step == 3


class Killed(BaseException):
    pass


def steps_of_saving(monkeypatch, tmp_path):
    """How many files are renamed while a checkpoint is saved; a kill before each of them."""
    import os

    real, count = os.replace, [0]

    def counted(old, new):
        count[0] += 1
        if count[0] == killed_at[0]:
            raise Killed
        real(old, new)

    killed_at = [0]
    monkeypatch.setattr("anofpdm.runtime.files.os.replace", counted)
    save_checkpoint(checkpoint(1, seed=1), tmp_path / "probe.pt", LIMIT)
    return count, killed_at


def test_a_kill_at_any_moment_leaves_a_checkpoint_that_loads(monkeypatch, tmp_path):
    count, killed_at = steps_of_saving(monkeypatch, tmp_path)
    renames = count[0]
    assert renames > 4
    for moment in range(1, renames + 1):
        path = tmp_path / f"{moment}.pt"
        killed_at[0] = 0
        save_checkpoint(checkpoint(1, seed=1), path, LIMIT)
        count[0], killed_at[0] = 0, moment
        with pytest.raises(Killed):
            save_checkpoint(checkpoint(2, seed=2), path, LIMIT)
        same(load_checkpoint(path), checkpoint(1, seed=1))
        killed_at[0] = 0
        save_checkpoint(checkpoint(2, seed=2), path, LIMIT)
        same(load_checkpoint(path), checkpoint(2, seed=2))


def test_a_full_disk_is_told(monkeypatch, tmp_path):
    def full(old, new):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anofpdm.runtime.files.os.replace", full)
    with pytest.raises(OutputError, match=r"cannot write .*: No space left"):
        save_checkpoint(checkpoint(), tmp_path / "model.pt", LIMIT)


def test_a_kill_before_old_shards_are_removed(monkeypatch, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(checkpoint(1, seed=1), path, LIMIT)

    def killed(folder, names):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_keep", killed)
        with pytest.raises(Killed):
            save_checkpoint(checkpoint(2, seed=2), path, LIMIT)
    same(load_checkpoint(path), checkpoint(2, seed=2))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "bytes, not"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\0"), "was altered"),
    ],
)
def test_a_shard_that_is_missing_or_altered_is_named(tmp_path, harm, message):
    path = tmp_path / "model.pt"
    save_checkpoint(checkpoint(), path, LIMIT)
    third = files(path)[2]
    if "altered" in message:
        third.write_bytes(b"\1" + third.read_bytes()[1:])
    harm(third)
    with pytest.raises(CheckpointError, match=f"{third.name} .*{message}.*copy") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_an_index_cannot_lead_elsewhere(tmp_path):
    path = tmp_path / "model.pt"
    (tmp_path / "secret").write_bytes(b"x")
    torch.save({shards.MARK: 1, "shards": [{"name": "../secret", "bytes": 1, "sha256": ""}]}, path)
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_checkpoint(path)
    torch.save({shards.MARK: 1, "shards": [{"name": "a"}]}, path)
    with pytest.raises(CheckpointError, match="is incomplete"):
        load_checkpoint(path)
    torch.save({shards.MARK: 2, "shards": []}, path)
    with pytest.raises(CheckpointError, match="this version"):
        load_checkpoint(path)


def test_shards_hold_data_alone(tmp_path):
    path = tmp_path / "model.pt"
    save_sharded({"a": Grid()}, path, 100)
    with pytest.raises(CheckpointError, match="without running code"):
        load_checkpoint(path)


def test_the_command_resumes_from_shards_and_begins_with_them(tmp_path):
    cohort, run, one_file = write_cohort(tmp_path / "c"), tmp_path / "run", tmp_path / "one"
    arguments = [str(cohort), "--image-size", "32", "--pixel-mm", "7.5", "--base-width", "32",
                 "--batch", "4", "--iterations", "3"]  # fmt: skip

    def call(*more):
        done = CliRunner().invoke(main, [*arguments, *map(str, more)])
        assert done.exit_code == 0, (done.output, done.exception)

    call("-o", one_file)
    call("-o", run, "--shard-mb", 2, "--stop-at", 1)
    call("-o", run, "--shard-mb", 2)
    assert len(files(run / "model.pt")) > 3
    assert max(file.stat().st_size for file in files(run / "model.pt")) == 2_000_000
    same(load_checkpoint(run / "model.pt"), load_checkpoint(one_file / "model.pt"))
    assert "shard" not in (run / "config.json").read_text()
    call("-o", tmp_path / "further", "--init", run / "model.pt")
    assert load_checkpoint(tmp_path / "further/model.pt").data["begun_with"]["iterations"] == 3
