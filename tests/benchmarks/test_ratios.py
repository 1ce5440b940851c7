"""A benchmark that is no longer as fast relative to its counterpart fails."""

import json
import os
import subprocess
import sys

import pytest
from ratios import regressed, summary
from support import ROOT

BENCH = """
import time

def test_two_to_one(compare):
    compare(lambda: time.sleep(0.1), lambda: time.sleep(0.2), rounds=3)
"""


def test_ratios_are_of_the_same_round():
    """The machine was three times as slow in the second one."""
    result = summary([1.0, 3.0, 1.0, 1.0], [2.0, 6.3, 2.1, 1.9])
    assert result["ratio"] == pytest.approx(2.05)
    assert result["quartiles"] == pytest.approx([1.975, 2.1])
    assert (result["seconds"], result["rounds"]) == (1.0, 4)


def test_a_fifth_less_is_a_regression():
    assert regressed(1.59, 2.0)
    assert not regressed(1.61, 2.0)
    assert not regressed(9.0, 2.0)


@pytest.fixture
def bench(tmp_path):
    """A folder with a benchmark, and what runs it."""
    for name in ("conftest.py", "ratios.py", "common.py"):
        (tmp_path / name).write_text((ROOT / "benchmarks" / name).read_text())
    (tmp_path / "test_bench.py").write_text(BENCH)
    (tmp_path / "results").mkdir()

    def run(*options):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        # Not as a part of a parallel run of tests, where benchmarks are off.
        alone = {name: value for name, value in os.environ.items() if "XDIST" not in name}
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, env=alone
        )

    return run


@pytest.mark.slow
def test_the_command_fails_where_a_ratio_fell(bench, tmp_path):
    assert "no ratio is recorded" in bench().stdout
    assert bench("--record").returncode == 0
    path = tmp_path / "results" / "ratios.json"
    kept = json.loads(path.read_text())
    ratio = kept["benchmarks"]["test_two_to_one"]["ratio"]
    assert 1.7 < ratio < 2.3
    again = bench()
    assert again.returncode == 0, again.stdout
    assert f"recorded {ratio:.2f}" in again.stdout
    kept["benchmarks"]["test_two_to_one"]["ratio"] = 3.0
    path.write_text(json.dumps(kept))
    fallen = bench()
    assert fallen.returncode == 1
    assert "times as fast as its counterpart, 3.00 was recorded" in fallen.stdout
