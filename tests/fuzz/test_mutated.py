"""Damaged inputs of every kind end well: with success, or one line that a user can act on.

A default run tries some 300 inputs, in one process. ``pytest -m fuzz`` tries 20,000, a process a
target, which takes some minutes.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import targets
from fuzz.targets import TARGETS
from fuzz.worker import attempt, case
from support import ROOT

FULL, SHARE, SEED = 20_000, 300, 0
WORKER = Path(__file__).with_name("worker.py")
WEIGHTS = sum(target.weight for target in TARGETS.values())


def counts(total):
    return {name: -(-total * target.weight // WEIGHTS) for name, target in TARGETS.items()}


def fuzzed(wanted, progress):
    """The worker's results. Should its process die, the input that it died of is named."""
    arguments = [f"{name}={count}" for name, count in wanted.items()]
    done = subprocess.run(
        [sys.executable, str(WORKER), str(SEED), "0", str(progress), *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, progress.read_text(), done.stderr[-2000:])
    results = json.loads(done.stdout.splitlines()[-1])
    for name, count in wanted.items():
        print(f"{name}: {results[name]}")
        assert results[name]["failures"] == [], name
        assert results[name]["used"] + results[name]["refused"] == count
    return results


@pytest.mark.fuzz
def test_some_damaged_inputs_of_every_kind(tmp_path):
    results = fuzzed(counts(SHARE), tmp_path / "progress")
    # Damage that is always noticed, or never, would test little.
    assert 0.05 < sum(one["used"] for one in results.values()) / SHARE < 0.8


@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_twenty_thousand_damaged_inputs(name, tmp_path, request):
    if "fuzz" not in request.config.getoption("markexpr"):
        pytest.skip("thousands of inputs: run pytest -m fuzz")
    fuzzed({name: counts(FULL)[name]}, tmp_path / "progress")


@pytest.mark.parametrize("name", TARGETS)
def test_the_examples_are_good_until_they_are_damaged(name, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "damaged", lambda data, *_: data)
    monkeypatch.setattr(targets, "damaged_json", lambda content, _: json.dumps(content).encode())
    monkeypatch.setattr(targets, "_rewired", lambda _: targets._network())
    assert attempt(TARGETS[name], case(name, 1, 0), tmp_path / "case") == "used"


def test_the_same_numbers_give_the_same_input():
    for name in TARGETS:
        assert case(name, 3, 7) == case(name, 3, 7)
    assert len({case("scaled", 3, n)["v.nii"] for n in range(50)}) > 45
