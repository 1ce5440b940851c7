"""benchmarks/scaling.py: with a clock that networks advance, so that every exponent is known."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.image import imread
from support import ROOT, bundle, toy_network

from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.train.unet import UNet

MEMORY = {
    "machine": {"cpu": "another"},
    "stride": 4,
    "rows": [
        {"encoding": encoding, "L": L, "volumes": volumes, "peak_mib": peak}
        for encoding, L, volumes, peak in (
            ("ddim", 100, 1, 200.0), ("ddim", 300, 1, 205.0), ("ddpm", 300, 1, 999.0),
            ("ddim", 100, 4, 202.0), ("ddim", 100, 16, 210.0),
        )
    ],
}  # fmt: skip


@pytest.fixture
def scaling(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling

    yield scaling
    for name in set(sys.modules) - before:
        if str(ROOT / "benchmarks") in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.fixture
def clock(scaling, monkeypatch):
    """Networks that advance it by their pixels over their threads; their first eight calls, and
    those that come after another network's, take far longer."""
    now = SimpleNamespace(seconds=0.0, last=None)

    def load(path, threads):
        calls = []

        def network(x_t, t):
            cold = len(calls) < 8 or now.last is not network
            calls.append(len(x_t))
            now.last = network
            now.seconds += x_t.size * 1e-6 / threads * (50 if cold else 1)
            return toy_network(x_t, t)

        return network

    monkeypatch.setattr(scaling, "perf_counter", lambda: now.seconds)
    monkeypatch.setattr(scaling, "OnnxDenoiser", load)
    monkeypatch.setattr(scaling, "open_bundle", lambda path: bundle())
    monkeypatch.setattr(type(bundle()), "network", property(lambda self: None))
    monkeypatch.setattr(scaling, "exported", lambda architecture, side, folder: folder)
    return now


def command(scaling, tmp_path, *options, code=0):
    (tmp_path / "memory.json").write_text(json.dumps(MEMORY))
    arguments = ["--memory", str(tmp_path / "memory.json"), *options]
    done = CliRunner().invoke(scaling.main, arguments)
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def test_costs_are_those_of_the_clock(scaling, clock, tmp_path):
    options = ("-o", str(tmp_path / "out"), "--rounds", "2", "--threads", "6")
    printed = command(scaling, tmp_path, *options)
    found = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert (found["rounds"], found["threads"], found["slots"]) == (2, 6, 6)
    assert {"cpu", "python", "numpy", "onnxruntime", "torch"} <= set(found["machine"])
    assert found["memory_machine"] == {"cpu": "another"}
    pixel = 1e-6 / 6
    want = {  # slices x timesteps x pixels
        "slices": {n: n * 5 * 32**2 * pixel for n in (6, 12, 24, 48)},
        "L": {L: 6 * L / 20 * 32**2 * pixel for L in (100, 200, 300, 400, 500, 600)},
        "pixels": {side**2: 6 * side**2 * pixel for side in (64, 128, 192, 256)},
        "threads": {n: 6 * 5 * 32**2 * 1e-6 / n for n in (1, 2, 4, 6)},
    }
    timed = {one["what"]: one for one in found["curves"] if one["unit"] == "s"}
    assert list(timed) == list(want)
    for what, costs in want.items():
        points = timed[what]["points"]
        assert [point["size"] for point in points] == list(costs)
        medians = [point["cost"][1] for point in points]
        np.testing.assert_allclose(medians, list(costs.values()), rtol=1e-9)
        assert timed[what]["exponent"] == pytest.approx(-1 if what == "threads" else 1)
    assert "| seconds | slices | 5 steps, 32 x 32 pixels, 6 threads | 6: 0.00512 s" in printed
    assert "| 8 | 8 | 1.00 | 1 |" in printed
    assert "| 6 | 0.167 | -1.00 | -1 |" in printed


def test_the_figure_shows_the_points_of_the_json(scaling, clock, tmp_path):
    options = ("-o", str(tmp_path), "--rounds", "1", "--threads", "2", "--quick")
    command(scaling, tmp_path, *options)
    assert (tmp_path / "scaling.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(tmp_path / "scaling.png")
    assert pixels.shape[:2] == (1140, 1800)
    for half in np.array_split(pixels[..., :3], 2):
        for panel in np.array_split(half, 3, axis=1):
            assert 0.01 < (panel < 0.9).any(axis=-1).mean() < 0.5
    curves = json.loads((tmp_path / "scaling.json").read_text())["curves"]
    for curve in curves:
        for i, point in enumerate(curve["points"]):
            low, middle, high = point["cost"]
            point["cost"] = [low * 0.9, middle * (1 + 0.1 * i), high * 1.5]
    figure = scaling.draw(curves)
    assert len(figure.axes) == len(curves) == 6
    for axis, curve in zip(figure.axes, curves, strict=True):
        sizes = [point["size"] for point in curve["points"]]
        low, middle, high = zip(*(point["cost"] for point in curve["points"]), strict=True)
        dashed, drawn = axis.lines[:2]
        np.testing.assert_allclose(drawn.get_xydata(), np.column_stack([sizes, middle]))
        bars = np.array(axis.collections[0].get_segments())
        np.testing.assert_allclose(bars[:, 0], np.column_stack([sizes, low]))
        np.testing.assert_allclose(bars[:, 1], np.column_stack([sizes, high]))
        x, y = dashed.get_data()
        assert (dashed.get_linestyle(), y[0]) == ("--", middle[0])
        np.testing.assert_allclose(y[-1] / y[0], (x[-1] / x[0]) ** curve["expected"])
        assert axis.get_xscale() == "log"
        assert axis.get_yscale() == ("log" if curve["unit"] == "s" else "linear")
        assert f"{curve['what']}, exponent {curve['exponent']:.2f}" in axis.get_title()
        assert curve["label"] in axis.get_xlabel()
        assert axis.get_ylabel() == ("seconds" if curve["unit"] == "s" else "peak MiB")
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["64²", "128²"]


def test_memory_is_drawn_against_l_and_volumes(scaling):
    one, many = scaling.memory_curves(MEMORY)
    assert [(p["size"], p["cost"][1]) for p in one["points"]] == [(100, 200), (300, 205)]
    assert [(p["size"], p["cost"][1]) for p in many["points"]] == [(1, 200), (4, 202), (16, 210)]
    assert one["exponent"] == pytest.approx(np.log(205 / 200) / np.log(3))
    assert scaling.line(many)[-4:] == ["16", "1.05", f"{many['exponent']:.2f}", "0"]


def test_the_exponent_of_a_power_law(scaling):
    sizes = np.array([4.0, 9, 100, 5000])
    for power in (-1, 0, 0.5, 1.7):
        assert scaling.exponent(sizes, 3e-4 * sizes**power) == pytest.approx(power, abs=1e-9)
    # By hand: logarithms to base 2 are 0, 1, 2 and 0, 1, 1.
    assert scaling.exponent([1, 2, 4], [1, 2, 2]) == pytest.approx(0.5)
    assert scaling.exponent([1], [2.0]) is None


def test_every_round_takes_all_points_in_turn_and_the_first_is_left_out(scaling):
    order = []

    def point(name, axis, size, times):
        backend = SimpleNamespace(denoiser=name)
        return SimpleNamespace(
            axis=axis, size=size, segmenter=SimpleNamespace(backend=backend),
            call=lambda: None, seconds=lambda: (order.append(name), next(times))[1],
        )  # fmt: skip

    a, b = (scaling.Axis(what, "", "s", 1) for what in "ab")
    rows = {("p", a, 1): [4, 1, 2, 3, 5], ("q", a, 2): [6] * 5, ("r", b, 7): [7, 9, 7, 9, 8]}
    points = [point(*key, iter([99, *times])) for key, times in rows.items()]
    seconds = scaling.measured(points, 5)
    assert order == list("pqr") * 6  # the first is not counted
    first, second = scaling.as_curves(points, seconds)
    assert [p["cost"] for p in first["points"]] == [[2, 3, 4], [6, 6, 6]]
    assert [p["cost"] for p in second["points"]] == [[7, 8, 9]]
    assert (first["exponent"], second["exponent"]) == (pytest.approx(1), None)
    assert scaling.line(second)[-2] == "one point only"


def test_networks_of_all_sides_have_the_same_layers(scaling):
    architecture = open_bundle(DEFAULT).manifest.architecture
    layers = [
        {name: value.shape for name, value in UNet(config).state_dict().items()}
        for config in (scaling.at_side(architecture, side) for side in scaling.FULL.sides)
    ]
    assert all(one == layers[0] for one in layers)
    assert scaling.at_side(architecture, 256).attention_resolutions == (16,)
    assert scaling.at_side(architecture, 256).image_size == 256
    finer = scaling.with_side(bundle(size=32), 64).manifest.grid
    assert (finer.size, finer.pixel_mm) == (64, 3.75)


@pytest.mark.slow
def test_a_network_is_exported_at_its_side(scaling, tmp_path):
    small = {
        "in_channels": 1, "image_size": 32, "base_width": 32, "channel_mult": [1, 1],
        "num_res_blocks": 1, "attention_resolutions": [8], "patch": 2,
    }  # fmt: skip
    network = OnnxDenoiser(scaling.exported(small, 64, tmp_path), 1)
    x_t = np.random.default_rng(0).standard_normal((3, 1, 64, 64)).astype(np.float32)
    eps, _ = network(x_t, np.array([1, 50, 100]))
    assert eps.shape == x_t.shape
    assert eps.std() > 0.01


def test_what_is_no_result_does_not_take_its_place(scaling, tmp_path):
    assert "name a folder with -o" in command(scaling, tmp_path, "--quick", code=2)
    missing = ("--memory", str(tmp_path / "none.json"), "-o", str(tmp_path))
    assert "memory.py --json" in command(scaling, tmp_path, *missing, code=2)


def test_threads_are_doubled_up_to_all(scaling):
    for most, counts in ((1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8])):
        assert scaling.thread_counts(most) == counts
    assert scaling.thread_counts(12) == [1, 2, 4, 8, 12]


def test_memory_is_measured_for_other_timesteps_than_the_calibrated(scaling):
    import memory

    found = memory.measure("ddim", 5, 1)
    assert (found["steps"], found["L"], found["volumes"]) == (2, 5, 1)
    assert found["peak_mib"] > found["above_mib"] >= 0
