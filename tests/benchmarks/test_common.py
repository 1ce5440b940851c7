"""Timings, and bundles to compare with."""

import json

import common
import numpy as np
import pytest
from support import bundle, recalibrated


def test_work_is_timed_in_turn_and_the_first_round_is_left_out(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(common.time, "perf_counter", lambda: clock[0])

    def work(name, seconds):
        def run():
            order.append(name)
            clock[0] += seconds[order.count(name) - 1]

        return run

    seconds = common.in_turn([work("a", [9, 1, 2, 3]), work("b", [8, 4, 5, 6])], 3)
    assert order == 4 * ["a", "b"]
    assert seconds == [[1, 2, 3], [4, 5, 6]]


def test_quartiles_and_how_they_are_written():
    assert common.quartiles([5, 1, 2, 3, 4]) == [2, 3, 4]
    assert common.spread([0.1, 0.3, 0.1]) == "0.10 [0.10, 0.20]"
    assert common.spread([100, 100, 200]) == "100 [100, 150]"
    assert common.spread([12.34] * 3) == "12.3 [12.3, 12.3]"


def test_the_paper_rules_replace_those_of_the_calibration():
    beyond = {
        "threshold_rule": "mean-with-otsu",
        "neighbours_mm": 10.0,
        "flip_tta": True,
        "guided_mm": 10.0,
    }
    assert common.with_paper_rules(recalibrated(bundle(), **beyond)) == bundle()


def test_another_process_keeps_the_thresholds():
    toy = bundle()
    other = common.with_process(toy, "ddpm", 41, 10)
    calibration = other.calibrations[other.default]
    conditions = calibration.conditions
    assert (conditions.encoding, conditions.L, conditions.stride) == ("ddpm", 41, 10)
    assert calibration.M_max == toy.calibrations["fast"].M_max


def test_a_script_runs_in_another_process_and_its_peak_is_its_own(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import json, sys\nprint('note')\nprint(json.dumps(sys.argv[1:]))\n")
    assert common.run_separately(str(script), "a", 2) == ["a", "2"]
    before = common.peak_mib()
    filled = np.ones(40 << 17)  # 40 MiB
    assert common.peak_mib() >= before
    assert filled.nbytes == 40 << 20


def test_packages_that_are_not_installed_have_no_version():
    assert list(common.versions("numpy", "no-such-package")) == ["numpy"]
    about = common.machine("numpy")
    assert {"cpu", "cores", "other_load", "python", "onnxruntime", "numpy"} == set(about)
    json.dumps(about)


@pytest.mark.parametrize("rows", [[], [["1", "2"]]])
def test_a_table_is_markdown(rows):
    lines = common.table(["a", "b"], rows).splitlines()
    assert lines == ["| a | b |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows)]
