"""benchmarks/ablation.py, checkpoints.py and judged.py: on a small cohort, by hand."""

import json
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from click.testing import CliRunner
from support import ROOT, write_cohort

from anofpdm.runtime.volume.grid import Grid
from anofpdm.train.cohort import read_cohort
from anofpdm.train.config import TrainConfig, unet_config
from anofpdm.train.dataset import open_sliceset
from anofpdm.train.loop import train
from anofpdm.train.prepare import prepare

SIZE = 32


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import ablation
    import checkpoints
    import variants

    yield ablation, checkpoints, variants
    for name in ("ablation", "checkpoints", "variants", "judged", "machine"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Prepared slices with 64 pixels a side, four patients to train and four to judge by."""
    folder = tmp_path_factory.mktemp("ablation")
    read = read_cohort(write_cohort(folder / "c", patients=8), ("flair",))
    cases = [replace(case, split="val" if i > 3 else "train") for i, case in enumerate(read)]
    prepare(cases, ("flair",), Grid(2 * SIZE, 3.75), folder / "s", {}, lambda done, total: None)
    return folder / "s"


def command(main, *arguments):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def test_a_variant_changes_one_thing(benchmarks):
    base = benchmarks[2].VARIANTS["base"].configs(1, 64, 500)
    for name, variant in benchmarks[2].VARIANTS.items():
        changed = {
            field.name
            for one, other in zip(base, variant.configs(1, 64, 500), strict=True)
            for field in fields(one)
            if getattr(one, field.name) != getattr(other, field.name)
        }
        assert len(changed) == (0 if name == "base" or variant.slices != "flair" else 1), name


def test_slices_become_means_of_their_pixels(benchmarks, cohort, tmp_path):
    fine = open_sliceset(cohort)
    coarse = benchmarks[0]._coarse(cohort, tmp_path / "s", 1, SIZE)
    assert (coarse.grid.size, coarse.grid.pixel_mm) == (SIZE, 7.5)
    assert coarse.records == fine.records
    for i in range(0, len(fine), 7):
        x0 = fine.x0(i)
        want = (x0[:, ::2, ::2] + x0[:, 1::2, ::2] + x0[:, ::2, 1::2] + x0[:, 1::2, 1::2]) / 4
        np.testing.assert_allclose(coarse.x0(i), want, atol=1 / 255 + 1e-6)


def test_rows_are_made_once_and_again_when_asked_for_something_else(benchmarks, cohort, tmp_path):
    asked = (cohort, "-o", tmp_path, "--image-size", SIZE, "--every", 1,
             "--only", "base", "--only", "no contrast")  # fmt: skip
    table = command(benchmarks[0].main, *asked, "--iterations", 3).stdout
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["base", "no contrast"]
    assert [row["train"]["contrast"] > 0 for row in rows] == [True, False]
    assert all(line in table for line in ("| base | 3 |", "| no contrast | 3 |"))
    written, trained = ((tmp_path / "base" / name).stat for name in ("row.json", "model.pt"))
    before = written().st_mtime_ns, trained().st_mtime_ns
    assert command(benchmarks[0].main, *asked, "--iterations", 3).stdout == table
    assert (written().st_mtime_ns, trained().st_mtime_ns) == before
    command(benchmarks[0].main, *asked, "--iterations", 3, "--w", 4)
    again = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert [row["w"] for row in again] == [4, 4]
    assert [row["seconds"] for row in again] == [row["seconds"] for row in rows]
    assert trained().st_mtime_ns == before[1]


def test_checkpoints_are_compared_in_the_order_of_training(benchmarks, cohort, tmp_path):
    slices = open_sliceset(cohort)
    config = TrainConfig(iterations=2, batch=4, warmup=1)
    unet = unet_config("light", 1, 2 * SIZE, base_width=32)
    paths = []
    for stop in (2, 1):
        paths.append(tmp_path / f"{stop}.pt")
        train(slices.split("train"), unet, config, paths[-1], data={}, stop_at=stop)
    found = tmp_path / "curve.json"
    command(benchmarks[1].main, cohort, *paths, "--every", 1, "--json", found)
    rows = json.loads(found.read_text())["rows"]
    assert [(row["iterations"], row["before"]) for row in rows] == [(1, 0), (2, 0)]
    val = slices.split("val")
    for row in rows:
        assert (row["slices"], row["unhealthy"]) == (len(val), int(val.unhealthy.sum()))
        assert all(0 <= row[name] <= 1 for name in ("dice", "auprc", "auroc"))
