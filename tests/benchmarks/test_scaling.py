"""benchmarks/scaling.py: with a clock that networks advance, so that every exponent is known."""

import json
from types import SimpleNamespace

import common
import numpy as np
import pytest
import scaling
from click.testing import CliRunner
from support import bundle, fading_network, head, save, toy_network

from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.cli.discovery import find_cases
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.volume.nifti import load_image


@pytest.fixture
def clock(monkeypatch):
    """Networks that advance it by their pixels over their threads; their first eight calls take far
    longer."""
    now = SimpleNamespace(seconds=0.0)

    def load(path, threads):
        calls = []

        def network(x_t, t):
            calls.append(len(x_t))
            now.seconds += x_t.size * 1e-6 / threads * (50 if len(calls) <= 8 else 1)
            return toy_network(x_t, t)

        return network

    monkeypatch.setattr(common.time, "perf_counter", lambda: now.seconds)
    monkeypatch.setattr(scaling, "OnnxDenoiser", load)
    monkeypatch.setattr(scaling, "open_bundle", lambda path: bundle())
    monkeypatch.setattr(type(bundle()), "network", property(lambda self: None))
    return now


def command(*arguments, code=0):
    done = CliRunner().invoke(scaling.main, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.mark.slow
def test_costs_are_those_of_the_clock(clock, tmp_path):
    printed = command("time", "-o", tmp_path, "--rounds", 2, "--threads", 6)
    result = json.loads((tmp_path / "scaling.json").read_text())
    assert (result["rounds"], result["threads"]) == (2, 6)
    assert {"cpu", "python", "numpy", "onnxruntime"} <= set(result["machine"])
    pixel = 1e-6 / 6
    want = {  # slices x timesteps x pixels
        "slices": {n: n * 5 * 32**2 * pixel for n in (6, 12, 24, 48)},
        "L": {L: 6 * L / 20 * 32**2 * pixel for L in (100, 200, 300, 400, 500, 600)},
        "threads": {n: 6 * 5 * 32**2 * 1e-6 / n for n in (1, 2, 4, 6)},
    }
    assert [curve["what"] for curve in result["curves"]] == list(want)
    for curve in result["curves"]:
        points, costs = curve["points"], want[curve["what"]]
        assert [point["size"] for point in points] == list(costs)
        medians = [point["cost"][1] for point in points]
        np.testing.assert_allclose(medians, list(costs.values()), rtol=1e-9)
        power = -1 if curve["what"] == "threads" else 1
        assert curve["exponent"] == pytest.approx(power)
        assert curve["expected"] == power
    assert "| slices | L = 100, 6 threads | 6: 0.00512 s" in printed
    assert "| 8 | 8 | 1.00 | 1 |" in printed
    assert "| 6 | 0.167 | -1.00 | -1 |" in printed


def test_the_exponent_of_a_power_law():
    sizes = np.array([4.0, 9, 100, 5000])
    for power in (-1, 0, 0.5, 1.7):
        assert scaling.exponent(sizes, 3e-4 * sizes**power) == pytest.approx(power, abs=1e-9)
    # By hand: logarithms to base 2 are 0, 1, 2 and 0, 1, 1.
    assert scaling.exponent([1, 2, 4], [1, 2, 2]) == pytest.approx(0.5)
    assert scaling.exponent([1], [2.0]) is None
    single = {"what": "L", "label": "", "expected": 1, "exponent": None,
              "points": [{"size": 1, "cost": [1, 2, 3]}]}  # fmt: skip
    assert scaling.line(single)[-2] == "one point only"


@pytest.mark.parametrize(
    ("most", "counts"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])],
)
def test_threads_are_doubled_up_to_all(clock, most, counts):
    points = scaling.plan(bundle(), most, 4)
    assert [point.size for point in points if point.what == "threads"] == counts


def test_memory_is_measured_for_other_timesteps_than_the_calibrated():
    result = scaling.memory_of(("ddim", 5, 1), None)
    assert (result["steps"], result["slices"]) == (2, 8)
    assert result["peak_mib"] > result["above_mib"] >= 0


def test_a_large_volume_shows_four_levels_of_the_example(tmp_path, monkeypatch):
    X, Y, _ = load_image(common.EXAMPLE).shape
    monkeypatch.setattr(scaling, "LARGE_SHAPE", (2 * X, 2 * Y, 8))
    for kind, suffix in scaling.LARGE:
        path = scaling.enlarged_example(tmp_path / f"head{suffix}", np.dtype(kind))
        image, example = load_image(path), np.asarray(load_image(common.EXAMPLE).dataobj)
        assert image.get_data_dtype() == np.dtype(kind)
        values = np.asarray(image.dataobj)
        assert not values[..., [0, 1, 6, 7]].any()
        np.testing.assert_array_equal(values[::2, ::2, 2:6], example[..., 20:24])
        np.testing.assert_array_equal(values[1::2, 1::2, 2:6], example[..., 20:24])
    small = scaling.memory_of(None, str(path))
    assert small["slices"] == 4


@pytest.mark.parametrize(("peaks", "message"), [
    ([100.0] * 10, None), ([100.0] * 5 + [117.0] + [100.0] * 4, "differ by more than 16 MiB"),
    ([100.0] * 9 + [2049.0], "above 2048 MiB"),
])  # fmt: skip
def test_the_command_fails_where_memory_grows(tmp_path, monkeypatch, peaks, message):
    following = iter(peaks)
    monkeypatch.setattr(
        scaling.common, "run_separately",
        lambda *arguments: {"steps": 25, "peak_mib": next(following), "above_mib": 50.0},
    )  # fmt: skip
    monkeypatch.setattr(scaling, "enlarged_example", lambda path, kind: path)
    printed = command("memory", "-o", tmp_path, code=1 if message else 0)
    assert message is None or message in printed
    result = json.loads((tmp_path / "memory.json").read_text())
    assert [row["peak_mib"] for row in result["rows"] + result["large"]] == peaks
    assert "| ddim | 100 | 16 | 25 |" in printed


@pytest.fixture
def folder(tmp_path):
    """Three heads and a file that is none."""
    cases = tmp_path / "cases"
    cases.mkdir()
    for i, levels in enumerate((5, 8, 6)):
        save(cases / f"P{i}.nii.gz", head((24, 28, levels), seed=i))
    (cases / "P9.nii.gz").write_bytes(b"no head")
    return cases


def loading(slots):
    def load(options, device, threads):
        assert (options, device) == (Options(preset="fast"), "cpu")
        toy = bundle(process=("ddim", 301, 60, "even"))
        return Segmenter(toy, NumpyBackend(fading_network, slots=slots), options=options)

    return load


def test_the_share_of_slots_in_use_by_hand(folder, tmp_path, monkeypatch):
    """n slices of six steps in ``slots`` slots: full while slices wait, then the rest."""
    for slots, code in ((1, 0), (2, 0), (16, 1)):
        monkeypatch.setattr(scaling.Segmenter, "load", loading(slots))
        printed = command("slots", folder, "--preset", "fast", "-o", tmp_path, code=code)
        result = json.loads((tmp_path / "slots.json").read_text())
        assert (result["cases"], result["segmented"], result["slots"]) == (4, 3, slots)
        n = sum(
            len(Segmenter(bundle(), NumpyBackend(toy_network)).segment(load_image(path)).slices)
            for path in folder.glob("P[0-8]*")
        )
        assert result["calls"] == 6 * -(-n // slots)
        assert result["share"] == pytest.approx(6 * n / (slots * result["calls"]))
        assert (result["share"] < 0.95) == bool(code)
        assert ("of the slots were in use, below 95%" in printed) == bool(code)
        assert str(folder) not in json.dumps(result)


def test_a_folder_without_heads_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling.Segmenter, "load", loading(2))
    for path in folder.glob("P[0-8]*"):
        path.unlink()
    printed = command("slots", folder, "--preset", "fast", "-o", tmp_path, code=2)
    assert "no case could be segmented" in printed


def test_the_parts_of_the_example_are_cases(tmp_path):
    cases = find_cases(scaling.example_cases(tmp_path / "cases"), bundle().manifest.modalities)
    levels = [load_image(path).shape[2] for path in sorted((tmp_path / "cases").iterdir())]
    assert len(cases) == 8
    assert levels == [9, 14, 11, 7, 13, 10, 15, 6]
