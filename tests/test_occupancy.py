"""benchmarks/occupancy.py: shares by hand, and the simulation against what really runs."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from support import ROOT, bundle, fading_network, head, recalibrated, save

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.calibration import HealthyLeave
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.cli.discovery import find_cases
from anofpdm.runtime.method.process import Process
from anofpdm.runtime.method.schedule import Schedule
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.volume.nifti import load_image

LEVELS = (5, 8, 6)


@pytest.fixture
def occupancy(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import occupancy

    yield occupancy
    for name in ("occupancy", "machine"):
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path):
    """Three heads and a file that is none."""
    cases = tmp_path / "cases"
    cases.mkdir()
    for i, levels in enumerate(LEVELS):
        save(cases / f"P{i}.nii.gz", head((24, 28, levels), seed=i))
    (cases / "P9.nii.gz").write_bytes(b"no head")
    return cases


def leaving(encoding):
    """A bundle by which some slices leave after one step, some after three, and some never."""
    toy = bundle(process=(encoding, 301, 60, "even"))
    alone = Segmenter(toy, NumpyBackend(fading_network))
    M = [
        one.M
        for seed, levels in enumerate(LEVELS)
        for one in alone.segment(head((24, 28, levels), seed=seed), affine=AFFINE).slices
    ]
    best = np.maximum.accumulate(M, axis=1)[..., 0]
    first, third = np.quantile(best[:, 0], 0.3), np.quantile(best[:, 2], 0.6)
    bounds = ((first,), (0.0,), (third,), (0.0,), (0.0,), (0.0,))
    return recalibrated(toy, healthy_leave=HealthyLeave(bounds, 1.0, 1.0, 3.0, 6))


AFFINE = [[7.5, 0, 0, 0], [0, 7.5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]]


def process(encoding="ddim", steps=3):
    return Process(Schedule(), L=1 + 10 * (steps - 1), stride=10, encoding=encoding)


@pytest.mark.parametrize(
    ("encoding", "slots", "steps", "batches"),
    [
        ("ddim", 2, [3] * 5, [2] * 6 + [1] * 3),
        ("ddim", 2, [1, 3, 2, 3, 1], [2, 2, 2, 2, 1, 1]),
        ("ddim", 3, [3, 1, 1, 3, 2], [3, 3, 3, 1]),
        ("ddim", 4, [2, 3], [2, 2, 1]),
        ("ddpm", 4, [3], [3]),  # its steps side by side
        ("ddpm", 4, [1, 3], [4, 2]),  # two of the first one's in vain
    ],
)
def test_batches_by_hand(occupancy, encoding, slots, steps, batches):
    assert occupancy.simulated(process(encoding), slots, steps) == batches


def test_shares_by_hand(occupancy):
    """Five slices, of two volumes, of three steps at most, in two slots."""
    watched = occupancy.Watched(NumpyBackend(fading_network, slots=2))
    keys = [(0, 4), (0, 5), (0, 6), (1, 0), (1, 1)]
    watched.entered, watched.steps = keys, dict.fromkeys(keys, 3)
    watched.counted.batches, watched.calls_waiting = [2] * 6 + [1] * 3, 6
    found = watched.occupancy(process())
    assert found.share == pytest.approx(15 / 18)
    assert found.share_waiting == 1
    # Three slices take six calls, two take three.
    assert found.share_alone == pytest.approx(15 / (2 * (6 + 3)))
    assert (found.volumes, found.slices, found.steps, found.calls) == (2, 5, 15, 9)
    assert (found.saved, found.left_early, found.in_vain) == (0, 0, 0)
    # The first slice leaves after a step: the run takes 2, 2, 2, 2, 2, 2, 1; alone 2, 2, 2, 1; 2...
    watched.steps[0, 4] = 1
    watched.counted.batches, watched.calls_waiting = [2] * 6 + [1], 4
    found = watched.occupancy(process())
    assert found.share == pytest.approx(13 / 14)
    assert found.share_alone == pytest.approx(13 / (2 * (4 + 3)))
    assert (found.saved, found.left_early) == (pytest.approx(2 / 15), 1)


@pytest.mark.parametrize("encoding", ["ddim", "ddpm"])
def test_the_simulation_is_what_really_runs(occupancy, folder, tmp_path, encoding):
    toy = leaving(encoding)

    def watched_run(slots):
        watched = occupancy.Watched(NumpyBackend(fading_network, slots=slots))
        return watched, Segmenter(toy, watched)

    for slots in (1, 3, 4):
        watched, segmenter = watched_run(slots)
        cases = find_cases(folder, toy.manifest.modalities)
        assert occupancy.segment(segmenter, cases, tmp_path / f"out{slots}") == 3
        steps = [watched.steps[one] for one in watched.entered]
        assert set(steps) == {1, 3, 6}
        process = segmenter.plan.process
        batches = watched.counted.batches
        assert occupancy.simulated(process, slots, steps) == batches
        found = watched.occupancy(process)
        assert found.share == sum(batches) / len(batches) / slots
        assert found.steps == sum(steps) == sum(batches) - found.in_vain
        assert found.volumes == 3
        alone = []
        for i in range(len(LEVELS)):
            one, segmenter = watched_run(slots)
            segmenter.segment(load_image(folder / f"P{i}.nii.gz"))
            alone += one.counted.batches
        assert found.share_alone == pytest.approx(sum(alone) / len(alone) / slots)
    # Steps of DDPM fill what would stay empty at the end.
    assert found.share_alone < found.share
    assert (found.share == 1) == (encoding == "ddpm")
    assert found.share_waiting == 1


def test_the_command_prints_writes_and_fails_below_its_limit(
    occupancy, folder, tmp_path, monkeypatch
):
    toy = leaving("ddim")

    def load(setup, device, threads, slots):
        assert (setup, device) == (Options(preset="fast"), "cpu")
        return Segmenter(toy, NumpyBackend(fading_network, slots=slots), options=options)

    monkeypatch.setattr(occupancy.Segmenter, "load", load)

    def command(*options):
        path = tmp_path / "found.json"
        arguments = [str(folder), "--preset", "fast", "--json", str(path), *options]
        done = CliRunner().invoke(occupancy.main, arguments)
        return done, json.loads(path.read_text())

    done, found = command("--slots", "1")
    assert done.exit_code == 0, (done.output, done.exception)
    assert (found["cases"], found["segmented"], found["slots"]) == (4, 3, 1)
    assert found["share"] == 1
    assert f"| slots in use | {found['share']:.1%} |" in done.output
    assert str(folder) not in json.dumps(found)

    done, found = command("--slots", "16", "--limit", "1")
    assert done.exit_code == 1
    assert (found["cases"], found["share"], found["share_waiting"]) == (
        1,
        found["share_alone"],
        None,
    )
    assert found["share"] < 0.95
    assert f"Error: {found['share']:.1%} of the slots were in use, less than 95%" in done.output

    for path in folder.glob("P[0-8]*"):
        path.unlink()
    arguments = [str(folder), "--preset", "fast", "--slots", "2"]
    done = CliRunner().invoke(occupancy.main, arguments)
    assert done.exit_code == 2
    assert "no case could be segmented" in done.output


def test_the_folder_that_is_made_up_holds_heads(occupancy, tmp_path):
    toy = bundle()
    cases = find_cases(occupancy.made_up(tmp_path / "cases"), toy.manifest.modalities)
    watched = occupancy.Watched(NumpyBackend(fading_network))
    assert occupancy.segment(Segmenter(toy, watched), cases, tmp_path / "out") == len(cases) == 8
    found = watched.occupancy(Segmenter(toy, watched).setup.process)
    assert found.slices > 60
    assert found.share_alone < found.share - 0.05


def test_what_is_computed_for_slices_that_have_left_is_counted(occupancy):
    """The row of DDPM above whose first slice leaves after a step, of three that were computed."""
    watched = occupancy.Watched(NumpyBackend(fading_network, slots=4))
    watched.entered, watched.steps = [(0, 0), (0, 1)], {(0, 0): 1, (0, 1): 3}
    watched.counted.batches = [4, 2]
    assert watched.occupancy(process("ddpm")).in_vain == 2
