"""Speed and quality of presets beside the reference implementation: each column of the table."""

from types import SimpleNamespace

import common
import numpy as np
import pytest
import side_by_side
from methods import REFERENCE, Preset, SliceOutput, open_methods, t_e_agreement
from sklearn.metrics import average_precision_score
from support import bundle, recalibrated, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.method.process import Slice
from anofpdm.runtime.segmenter import Segmenter

RNG = np.random.default_rng(0)


def at(*t_e):
    return [SliceOutput(np.array([t]), np.zeros((4, 4)), np.zeros((4, 4), bool)) for t in t_e]


def test_t_e_agrees_within_one_visited_timestep():
    visited = np.array([1, 101, 301, 601])
    # 200 is as near to 101 as to 301: the first counts; 449 is nearest to 301, 452 to 601.
    exact = at(1, 120, 200, 449, 452, 600)
    assert t_e_agreement(at(1, 101, 301, 101, 101, 601), exact, visited) == pytest.approx(5 / 6)
    assert t_e_agreement(at(601, 601, 601, 1, 1, 1), exact, visited) == 0
    assert t_e_agreement(exact, exact, np.arange(1, 602)) == 1


def test_quality_is_that_of_unhealthy_slices():
    x0 = RNG.uniform(-0.9, 1, (3, 1, 16, 16)).astype(np.float32)
    x0[:, :, :3] = -1  # air
    masks = RNG.random((3, 16, 16)) > 0.7
    found = [SliceOutput(np.array([1]), np.zeros((16, 16), np.float32), RNG.random((16, 16)) > 0.6)
             for _ in range(3)]  # fmt: skip
    # Constant in every 5 x 5 neighbourhood but at the edges of two halves.
    for one, level in zip(found, (0.1, 0.2, 0.3), strict=True):
        one.H[:, 8:] = level
    labelled = SimpleNamespace(
        unhealthy=np.array([True, False, True]), x0=lambda i: x0[i], mask=lambda i: masks[i]
    )
    got = side_by_side.quality(found, labelled)
    overlap = [2 * (found[i].mask & masks[i]).sum() / (found[i].mask.sum() + masks[i].sum())
               for i in (0, 2)]  # fmt: skip
    assert got["dice"] == pytest.approx(np.mean(overlap))
    scores = np.concatenate([found[i].H[3:].ravel() for i in (0, 2)])
    drawn = np.concatenate([masks[i][3:].ravel() for i in (0, 2)])
    assert got["auprc"] == pytest.approx(average_precision_score(drawn, scores))


def test_the_cost_of_a_step_is_that_of_a_step():
    """Two labels of each of four slices: five timesteps in batches of two."""
    calls = []

    def counting(x_t, t):
        calls.append(t.tolist())
        return toy_network(x_t, t)

    toy = bundle(process=("ddim", 301, 60, "log-snr"))
    ours = Preset("fast", toy, NumpyBackend(counting, 2), Options())
    x0 = RNG.uniform(-1, 1, (4, 1, 32, 32)).astype(np.float32)
    ours.steps(x0, 5)
    assert sum(map(len, calls)) == 4 * 5
    assert {t for call in calls for t in call} == {1, 2, 3, 4, 5}
    assert (ours.evaluations, len(ours.visited)) == (12, 6)


@pytest.mark.parametrize("beyond", [False, True])
def test_whole_runs_are_those_of_the_segmenter(beyond):
    """With the paper's rules, whatever the calibration's are."""
    toy = bundle(process=("ddim", 301, 60, "even"))
    model = toy
    if beyond:
        model = recalibrated(
            toy, threshold_rule="mean-with-otsu", neighbours_mm=10.0, flip_tta=True
        )
    x0 = RNG.uniform(-1, 1, (5, 1, 32, 32)).astype(np.float32)
    got = list(Preset("fast", model, NumpyBackend(toy_network, 2), Options()).run(x0))
    results = Segmenter(toy, NumpyBackend(toy_network, 3)).segment_slices(
        Slice(i, x) for i, x in enumerate(x0)
    )
    for one, want in zip(got, sorted(results, key=lambda r: r.key), strict=True):
        np.testing.assert_array_equal(one.H, want.H)
        np.testing.assert_array_equal(one.mask, want.mask)
        assert one.t_e == want.t_e


class Timed:
    """Takes 1 ms of a clock for each evaluation of a label, whatever the slices."""

    now = 0.0

    def __init__(self, name, steps, evaluations):
        self.name, self.visited, self.evaluations = name, np.arange(steps), evaluations
        self.ran = []

    def run(self, x0):
        self.ran.append("whole")
        Timed.now += 1e-3 * self.evaluations
        return iter(())

    def steps(self, x0, count):
        self.ran.append(count)
        made = 4 * count - 1 if self.evaluations > 3 * len(self.visited) else 2 * count
        Timed.now += 1e-3 * made
        return made


def test_long_processes_are_timed_by_some_of_their_steps(monkeypatch):
    monkeypatch.setattr(common.time, "perf_counter", lambda: Timed.now)
    short, long, reference = (
        Timed("fast", 10, 20),
        Timed("exact", 100, 200),
        Timed("ref", 100, 399),
    )
    seconds = side_by_side.timed([reference, long, short], np.zeros((2, 1)), rounds=3)
    assert short.ran == 4 * ["whole"]
    assert long.ran == reference.ran == 4 * [side_by_side.TIMED_STEPS]
    for method, want in ((short, 0.010), (long, 0.100), (reference, 0.1995)):
        assert len(seconds[method.name]) == 3  # the first round warms up
        assert np.median(seconds[method.name]) == pytest.approx(want)


def test_a_row_compares_rounds():
    row = {"name": "fast", "w": 8.0, "evaluations": 26, "seconds": [0.1, 0.3, 0.1],
           "reference_seconds": [10.0, 30.0, 20.0], "volume_s": None, "peak_mib": 200.4,
           "dice": 0.5123, "auprc": 0.6, "t_e": 0.876}  # fmt: skip
    assert side_by_side.line(row) == [
        "fast", "8", "26", "0.10 [0.10, 0.20]", "100 [100, 150]", "not measured", "200", "0.512",
        "0.600", "88%",
    ]  # fmt: skip


def test_methods_are_the_reference_and_the_presets():
    default = open_bundle(DEFAULT)
    names = [method.name for method in open_methods(default, 1)]
    assert names[0] == REFERENCE
    assert {"exact", "exact, w = 8", "fast", "fastest"} <= set(names)
    assert "ddpm" not in names
    (fastest,) = open_methods(default, 1, "fastest")
    assert (fastest.name, fastest.evaluations) == ("fastest", 14)


def test_memory_is_that_of_all_timesteps_and_of_the_network(monkeypatch):
    """The reference implementation stores both predictions of 600 timesteps."""
    (reference,) = open_methods(open_bundle(DEFAULT), 1, REFERENCE)
    stored, calls, unet = [], [], reference._unet
    monkeypatch.setattr(
        "methods.select", lambda predictions, *rest: stored.append(predictions)
    )  # fmt: skip
    reference._unet = lambda *arguments: (calls.append(len(arguments[0])), unet(*arguments))[1]
    x0 = RNG.uniform(-1, 1, (2, 1, 128, 128)).astype(np.float32)
    reference.allocate(x0)
    assert stored[0].guided.shape == stored[0].unguided.shape == (600, *x0.shape)
    assert calls == [2, 2, 2]
