"""Runs over folders: done cases are kept, failures have reasons, and killing changes nothing."""

import csv
import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support import ROOT, bundle, head, save, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.cli.batch import TABLE, Batch
from anofpdm.runtime.cli.discovery import RUN, find_cases
from anofpdm.runtime.errors import OutputError
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.volume.nifti import load_image

KINDS = ("map", "trace")


@pytest.fixture
def cases(tmp_path):
    """Five volumes, one of them broken."""
    folder = tmp_path / "cases"
    folder.mkdir()
    for i in range(5):
        save(folder / f"P{i}.nii.gz", head((24, 28, 4 + i), seed=i))
    whole = (folder / "P2.nii.gz").read_bytes()
    (folder / "P2.nii.gz").write_bytes(whole[: len(whole) // 2])
    return folder


def batch(cases, out, seed=0, kinds=KINDS, network=toy_network, every_slice=False):
    toy = bundle()
    segmenter = Segmenter(toy, NumpyBackend(network), seed=seed)
    return Batch(segmenter, find_cases(cases, toy.manifest.modalities), out, kinds, every_slice)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def table(out):
    return list(csv.DictReader((out / TABLE).read_text().splitlines()))


def test_every_case_gets_what_it_gets_alone(cases, tmp_path):
    rows = batch(cases, tmp_path / "out").run()
    written = contents(tmp_path / "out")
    assert set(written) == {RUN, TABLE} | {
        f"P{i}_desc-anofpdm_{kind}"
        for i in (0, 1, 3, 4)
        for kind in ("mask.nii.gz", "map.nii.gz", "stats.json", "trace.json")
    }
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "ok"]
    assert [row["status"] for row in table(tmp_path / "out")] == [row["status"] for row in rows]
    for i in (0, 1, 3, 4):
        alone = Segmenter(bundle(), NumpyBackend(toy_network))
        segmentation = alone.segment(load_image(cases / f"P{i}.nii.gz"))
        mask, anomaly_map = (
            np.asarray(load_image(tmp_path / "out" / f"P{i}_desc-anofpdm_{kind}.nii.gz").dataobj)
            for kind in ("mask", "map")
        )
        np.testing.assert_array_equal(mask, segmentation.mask)
        np.testing.assert_array_equal(anomaly_map, segmentation.anomaly_map().get_fdata())
        assert table(tmp_path / "out")[i]["volume_ml"] == str(round(segmentation.volume_ml, 3))


def test_a_bad_case_is_reported_with_its_reason_and_the_others_go_on(cases, tmp_path):
    rows = []
    batch(cases, tmp_path / "out").run(on_row=lambda row, kept: rows.append((row["case"], kept)))
    assert [name for name, _ in rows] == ["P0", "P1", "P2", "P3", "P4"]
    bad = table(tmp_path / "out")[2]
    assert bad["status"] == "failed"
    assert "truncated or damaged" in bad["reason"]
    assert bad["volume_ml"] == ""


def test_what_is_done_is_kept_and_what_changed_is_done_again(cases, tmp_path):
    batches = []

    def counting(x_t, t):
        batches.append(len(t))
        return toy_network(x_t, t)

    out = tmp_path / "out"
    batch(cases, out, network=counting).run()
    before, first = contents(out), sum(batches)
    batches.clear()
    kept = []
    batch(cases, out, network=counting).run(on_row=lambda row, was_kept: kept.append(was_kept))
    assert not batches
    assert kept == [True] * 4 + [False]
    assert contents(out) == before
    save(cases / "P0.nii.gz", head((24, 28, 6), seed=9))
    (out / "P1_desc-anofpdm_map.nii.gz").unlink()
    batch(cases, out, network=counting).run()
    assert 0 < sum(batches) < first
    after = contents(out)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {TABLE} | {name for name in after if name.startswith("P0")}
    batches.clear()
    batch(cases, out, network=counting).run(overwrite=True)
    assert sum(batches) >= first
    assert contents(out) == after


@pytest.mark.parametrize("damage", [b"", b"junk"])
def test_a_damaged_mask_is_made_again(cases, tmp_path, damage):
    out = tmp_path / "out"
    batch(cases, out).run()
    before = contents(out)
    mask = out / "P1_desc-anofpdm_mask.nii.gz"
    mask.write_bytes(damage or mask.read_bytes()[:50])
    batch(cases, out).run()
    assert contents(out) == before


def test_replacing_a_run_leaves_no_rows_of_it(cases, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    save(few / "P0.nii.gz", head())
    batch(cases, tmp_path / "out").run()
    batch(few, tmp_path / "out", seed=1).run(overwrite=True)
    assert [row["case"] for row in table(tmp_path / "out")] == ["P0"]


@pytest.mark.parametrize("change", ["seed", "bundle"])
def test_a_folder_of_another_run_is_left_alone(cases, tmp_path, change):
    out = tmp_path / "out"
    batch(cases, out).run()
    if change == "bundle":
        identity = json.loads((out / RUN).read_text())
        (out / RUN).write_text(json.dumps({**identity, "bundle": "another"}))
    before = contents(out)
    another = batch(cases, out, seed=1 if change == "seed" else 0)
    with pytest.raises(OutputError, match=f"another {change}"):
        another.run()
    assert contents(out) == before
    another.run(overwrite=True)


class Interrupting:
    """Raises KeyboardInterrupt at a call; before that, the toy network."""

    def __init__(self, at):
        self.left = at

    def __call__(self, x_t, t):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return toy_network(x_t, t)


@pytest.mark.parametrize("other", [{"seed": 1}, {"every_slice": True}], ids=str)
@pytest.mark.parametrize("forgotten", [False, True])
def test_interrupted_while_it_replaces_another_run_it_keeps_nothing_of_that(
    cases, tmp_path, forgotten, other
):
    """Neither with --overwrite, nor where the folder does not say whose it is."""
    out = tmp_path / "out"
    batch(cases, tmp_path / "want", **other).run()
    batch(cases, out).run()
    if forgotten:
        (out / RUN).unlink()
    with pytest.raises(KeyboardInterrupt):
        batch(cases, out, network=Interrupting(20), **other).run(None if forgotten else True)
    batch(cases, out, **other).run()
    assert contents(out) == contents(tmp_path / "want")


@pytest.mark.parametrize("at", range(4))
def test_killed_between_two_renames_a_changed_case_is_done_again(cases, tmp_path, at, monkeypatch):
    import os

    out = tmp_path / "out"
    batch(cases, out).run()
    save(cases / "P0.nii.gz", head((24, 28, 6), seed=9))
    batch(cases, tmp_path / "want").run()
    renames, rename = [], os.replace

    def dying(source, target):
        if "P0" in str(target):
            if len(renames) == at:
                raise KeyboardInterrupt
            renames.append(target)
        rename(source, target)

    monkeypatch.setattr("os.replace", dying)
    with pytest.raises(KeyboardInterrupt):
        batch(cases, out).run()
    monkeypatch.undo()
    batch(cases, out).run()
    assert contents(out) == contents(tmp_path / "want")


def test_a_case_that_fails_now_leaves_nothing_of_its_former_input(cases, tmp_path):
    out = tmp_path / "out"
    batch(cases, out).run()
    (cases / "P0.nii.gz").write_bytes(b"no image")
    batch(cases, out).run()
    row = table(out)[0]
    assert (row["status"], row["mask_sha256"]) == ("failed", "")
    assert str(cases) not in row["reason"]
    assert not list(out.glob("P0*"))


def test_masks_of_changed_inputs_are_kept_if_nothing_may_be_replaced(cases, tmp_path):
    out = tmp_path / "out"
    batch(cases, out).run()
    batch(cases, out).run(overwrite=False)
    before = contents(out)
    save(cases / "P0.nii.gz", head((24, 28, 6), seed=9))
    with pytest.raises(OutputError, match="masks of P0 that would be replaced"):
        batch(cases, out).run(overwrite=False)
    assert contents(out) == before


@pytest.mark.parametrize("overwrite", [False, None])
def test_masks_of_no_run_are_kept_until_they_are_replaced(cases, tmp_path, overwrite):
    """Those that single volumes left in the folder, say."""
    out = tmp_path / "out"
    out.mkdir()
    mask = out / "P4_desc-anofpdm_mask.nii.gz"
    mask.write_bytes(b"of somebody")
    if overwrite is False:
        with pytest.raises(OutputError, match="masks of P4 that would be replaced"):
            batch(cases, out).run(overwrite=False)
        assert contents(out) == {mask.name: b"of somebody"}
    else:
        with pytest.raises(KeyboardInterrupt):
            batch(cases, out, network=Interrupting(2)).run()
        assert mask.read_bytes() == b"of somebody"
        batch(cases, out).run()
        assert mask.read_bytes() != b"of somebody"


def test_the_table_keeps_the_cases_of_other_folders(cases, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    save(other / "P9.nii.gz", head())
    (cases / "P4.nii.gz").rename(other / "A4.nii.gz")
    batch(other, tmp_path / "out").run()
    batch(cases, tmp_path / "out").run()
    assert [row["case"] for row in table(tmp_path / "out")] == ["A4", "P0", "P1", "P2", "P3", "P9"]


def test_progress_counts_cases(cases, tmp_path):
    seen = []
    batch(cases, tmp_path / "out").run(progress=lambda *numbers: seen.append(numbers))
    assert [done for _, done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[0][0] == 0
    assert max(cases for cases, _, _ in seen) >= 3


def test_a_case_whose_file_goes_away_is_reported_and_the_others_go_on(cases, tmp_path):
    def removing(x_t, t):
        (cases / "P1.nii.gz").unlink(missing_ok=True)
        return toy_network(x_t, t)

    rows = batch(cases, tmp_path / "out", network=removing).run()
    assert [row["status"] for row in rows] == ["ok", "failed", "failed", "ok", "ok"]


def test_names_of_any_bytes_and_spreadsheets(cases, tmp_path):
    import os

    odd = os.fsdecode(b"M\xfcller")
    (cases / "P0.nii.gz").rename(cases / f"{odd}.nii.gz")
    (cases / "P1.nii.gz").rename(cases / "=1+1.nii.gz")
    (cases / "P3.nii.gz").rename(cases / f"{'x' * 225}.nii.gz")
    rows = batch(cases, tmp_path / "out").run()
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "failed"]
    assert [row["case"] for row in table(tmp_path / "out")][:2] == ["'=1+1", "M\\udcfcller"]
    assert "too long" in rows[-1]["reason"]
    before = contents(tmp_path / "out")
    batch(cases, tmp_path / "out").run()
    assert contents(tmp_path / "out") == before


def test_bids_cases_keep_their_places(tmp_path):
    for name in ("sub-01/anat/sub-01", "sub-02/ses-a/anat/sub-02_ses-a"):
        path = tmp_path / "bids" / f"{name}_FLAIR.nii.gz"
        path.parent.mkdir(parents=True)
        save(path, head())
    toy = bundle(modalities=("flair",), scored=("flair",))
    segmenter = Segmenter(toy, NumpyBackend(toy_network))
    Batch(segmenter, find_cases(tmp_path / "bids", ("flair",)), tmp_path / "out").run()
    written = contents(tmp_path / "out")
    assert "sub-01/anat/sub-01_desc-anofpdm_mask.nii.gz" in written
    assert "sub-02/ses-a/anat/sub-02_ses-a_desc-anofpdm_stats.json" in written
    description = json.loads(written["dataset_description.json"])
    assert (description["DatasetType"], description["Name"]) == ("derivative", "anofpdm")
    (tmp_path / "out/dataset_description.json").write_text("of somebody else")
    Batch(segmenter, find_cases(tmp_path / "bids", ("flair",)), tmp_path / "out").run(True)
    assert (tmp_path / "out/dataset_description.json").read_text() == "of somebody else"
    assert [row["case"] for row in table(tmp_path / "out")] == [
        "sub-01/anat/sub-01", "sub-02/ses-a/anat/sub-02_ses-a",
    ]  # fmt: skip


RUNNING = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support import bundle, toy_network
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.cli.batch import Batch
from anofpdm.runtime.cli.discovery import find_cases
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.segmenter import Segmenter

barrier = Path(sys.argv[4])

def slow(x_t, t):
    time.sleep(0.002)
    while barrier.exists():
        time.sleep(0.002)
    return toy_network(x_t, t)

@reports_errors
def main():
    toy = bundle()
    cases = find_cases(Path(sys.argv[2]), toy.manifest.modalities)
    print("ready", flush=True)
    Batch(Segmenter(toy, NumpyBackend(slow)), cases, Path(sys.argv[3]), ("map", "trace")).run()

main()
"""


def start(cases, out):
    """A run in a process of its own, which waits while there is a file ``barrier``."""
    run = subprocess.Popen(
        [sys.executable, "-c", RUNNING, str(ROOT / "tests"), str(cases), str(out),
         str(cases.with_name("barrier"))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout.readline() == "ready\n", run.stderr.read()
    return run


@pytest.fixture
def under_way(cases, tmp_path):
    """A run that has claimed its folder, and goes on when the barrier is removed."""
    (tmp_path / "barrier").touch()
    run = start(cases, tmp_path / "out")
    while not (tmp_path / "out" / RUN).exists():
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.001)
    yield run
    run.kill()
    run.wait()


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_the_bytes_are_the_same(cases, tmp_path):
    whole = start(cases, tmp_path / "whole")
    began = time.monotonic()
    assert whole.wait(600) == 0, whole.stderr.read()
    seconds = time.monotonic() - began
    want, out, rng = contents(tmp_path / "whole"), tmp_path / "out", random.Random(0)
    killed = 0
    for i in range(200):
        # Every fifth kill finds an empty folder, so that all of the run is hit.
        if i % 5 == 0 and out.exists():
            for path in sorted(out.rglob("*"), reverse=True):
                path.unlink()
        before = set(out.glob(".*"))
        run = start(cases, out)
        time.sleep(rng.random() * seconds * (0.3 if i % 5 else 1))
        run.send_signal(signal.SIGKILL if i % 2 else signal.SIGTERM)
        if run.wait(600) == 0:
            seconds *= 0.9  # it was faster than the first run: another load on the machine
        else:
            killed += 1
        for name, content in contents(out).items():
            if not name.startswith(".") and name != TABLE:
                assert content == want[name], name
        if not i % 2:
            assert set(out.glob(".*")) <= before, "SIGTERM left something half-written"
        if i >= 19 and killed >= 10:
            break
    assert killed >= 10
    assert start(cases, out).wait(600) == 0
    assert contents(out) == want


def test_two_runs_do_not_share_a_folder(cases, tmp_path, under_way):
    with pytest.raises(OutputError, match="another run is writing"):
        batch(cases, tmp_path / "out").run()
    (tmp_path / "barrier").unlink()
    assert under_way.wait(600) == 0
    batch(cases, tmp_path / "out").run()


def test_sigterm_ends_as_ctrl_c_does(tmp_path, under_way):
    under_way.terminate()
    assert under_way.wait(600) == 130
    assert under_way.stderr.read() == "interrupted\n"
    assert not list((tmp_path / "out").glob(".*"))
