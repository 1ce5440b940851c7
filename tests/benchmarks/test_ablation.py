"""benchmarks/ablation.py and assess.py on a small cohort, by hand."""

import json
from dataclasses import fields, replace

import ablation
import pytest
from click.testing import CliRunner
from support import write_cohort

from anofpdm.runtime.errors import OptionsError
from anofpdm.runtime.volume.grid import Grid
from anofpdm.train.checkpoint import load_checkpoint
from anofpdm.train.cohort import read_cohort
from anofpdm.train.config import TrainConfig, unet_config
from anofpdm.train.dataset import open_sliceset
from anofpdm.train.loop import train
from anofpdm.train.prepare import prepare

SIZE = 32


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Prepared slices, four patients to train and four to evaluate."""
    folder = tmp_path_factory.mktemp("ablation")
    read = read_cohort(write_cohort(folder / "c", patients=8), ("flair",))
    cases = [replace(case, split="val" if i > 3 else "train") for i, case in enumerate(read)]
    prepare(cases, ("flair",), Grid(SIZE, 7.5), folder / "s", {}, lambda done, total: None)
    return folder / "s"


def command(*arguments, code=0):
    done = CliRunner().invoke(ablation.main, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def changed(first, second):
    """The fields in which pairs of configurations differ."""
    return {
        field.name: getattr(b, field.name)
        for a, b in zip(first, second, strict=True)
        for field in fields(a)
        if getattr(a, field.name) != getattr(b, field.name)
    }


def test_a_variant_changes_one_field(cohort):
    slices = open_sliceset(cohort)
    base = ablation.configs({}, slices, 500, None)
    for change in ablation.CHANGES[1:]:
        to = ablation.parse(change)
        assert changed(base, ablation.configs(to, slices, 500, None)) == to, change
        assert len(to) == 1
    assert ablation.parse("base") == {}
    assert ablation.parse("channel_mult=[1, 1, 1]") == {"channel_mult": (1, 1, 1)}
    assert ablation.parse("loss_weight=min-snr") == {"loss_weight": "min-snr"}
    with pytest.raises(OptionsError, match="no field"):
        ablation.parse("width=3")


@pytest.mark.slow
def test_rows_are_made_once_and_again_for_other_settings(cohort, tmp_path):
    settings = (cohort, "-o", tmp_path, "--every", 3, "--change", "base", "--change", "contrast=0")
    table = command(*settings, "--iterations", 3).stdout
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["base", "contrast=0"]
    assert [row["train"]["contrast"] > 0 for row in rows] == [True, False]
    assert all(line in table for line in ("| base | 3 |", "| contrast=0 | 3 |"))
    written, trained = ((tmp_path / "base" / name).stat for name in ("row.json", "model.pt"))
    before = written().st_mtime_ns, trained().st_mtime_ns
    assert command(*settings, "--iterations", 3).stdout == table
    assert (written().st_mtime_ns, trained().st_mtime_ns) == before
    command(*settings, "--iterations", 3, "--w", 4)
    again = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert [row["w"] for row in again] == [4, 4]
    assert [row["seconds"] for row in again] == [row["seconds"] for row in rows]
    assert trained().st_mtime_ns == before[1]
    # Trained, but killed before it was evaluated.
    (tmp_path / "base" / "row.json").unlink()
    assert "| base | 3 | not measured |" in command(*settings[:-2], "--iterations", 3).stdout


@pytest.mark.slow
def test_checkpoints_are_trained_further_and_evaluated(cohort, tmp_path):
    slices = open_sliceset(cohort)
    config = TrainConfig(iterations=2, batch=4, warmup=1)
    unet = unet_config("light", 1, SIZE, base_width=32)
    paths = []
    for stop in (1, 2):
        paths.append(tmp_path / f"{stop}.pt")
        train(slices.split("train"), unet, config, paths[-1], data={}, stop_at=stop)
    begun = load_checkpoint(paths[1])
    assert ablation.configs({"lr": 1e-5}, slices, 9, begun)[0] == begun.unet
    curve = tmp_path / "curve.json"
    command(
        cohort, "-o", tmp_path, "--init", paths[1], "--iterations", 1, "--every", 1, "--w", 2,
        "--json", curve, "--checkpoint", paths[0], "--checkpoint", paths[1], "--change", "seed=1",
        "--change", "prediction=eps",
    )  # fmt: skip
    rows = json.loads(curve.read_text())["rows"]
    iterations = [(row["variant"], row["train"]["iterations"]) for row in rows]
    assert iterations == [("1", 1), ("2", 2), ("seed=1", 1)]
    assert rows[-1]["begun_with"]["iterations"] == 2
    val = slices.split("val")
    for row in rows:
        assert (row["slices"], row["unhealthy"]) == (len(val), int(val.unhealthy.sum()))
        assert all(0 <= row[name] <= 1 for name in ("dice", "auprc", "auroc"))
