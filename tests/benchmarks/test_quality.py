"""benchmarks/quality.py: its panels against the equations written out, and its command."""

import csv
from dataclasses import fields, replace

import numpy as np
import panels
import pytest
import quality
from click.testing import CliRunner
from matplotlib.image import imread
from scipy import stats
from support import bundle, recalibrated
from transcription import alpha_bar

from anofpdm.calibrate.evaluation import evaluate
from anofpdm.runtime.backends.cpu.numpy_loop import NumpyBackend
from anofpdm.runtime.bundle.calibration import Candidate
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.method.decision import LogisticDecision
from anofpdm.runtime.method.noise import slice_noise
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.train.dataset import SliceRecord, open_sliceset, writing

W, N = 2.0, 9


def network(x_t, t):
    """Guidance moves what is bright, most of all around a timestep that depends on the slice."""
    share = np.asarray(t, x_t.dtype)[:, None, None, None]
    middle = 680 + 600 * x_t.mean(axis=(1, 2, 3), keepdims=True)
    bump = np.exp(-(((share - middle) / 120) ** 2))
    eps_null = (0.6 * x_t).astype(x_t.dtype)
    return (eps_null + 0.2 * bump * (1 + np.tanh(4 * x_t))).astype(x_t.dtype), eps_null


@pytest.fixture
def toy():
    """A bundle that tried another w, too, at its L and at a smaller one."""
    plain = bundle(process=("ddim", 601, 60, "even"))
    figures = {"M_max": (0.02,), "logistic": LogisticDecision(0.0, 1.0, 1.0)}
    blank = {one.name: 0.5 for one in fields(Candidate)} | figures
    tried = tuple(Candidate(**blank | {"L": L, "w": w}) for L, w in ((601, 5.0), (301, 9.0)))
    return recalibrated(plain, candidates=tried)


@pytest.fixture
def labelled(toy, tmp_path):
    """Nine slices; every other one has a bright square, larger from one to the next."""
    rng = np.random.default_rng(3)
    grid = toy.manifest.grid
    with writing(tmp_path / "slices", ("a",), grid, {}) as writer:
        for i in range(N):
            x0 = np.full((1, 32, 32), -1, np.float32)
            x0[:, 4:28, 4:28] = -0.2 + 0.04 * i + 0.1 * rng.standard_normal((1, 24, 24))
            mask = np.zeros((32, 32), bool)
            if i % 2:
                mask[8 : 11 + i, 10 : 13 + i] = True
                x0[0][mask] += 0.6
            record = SliceRecord(f"P{i % 3}", i, "val", bool(i % 2), True)
            writer.add(record, x0.clip(-1, 1), mask)
    return open_sliceset(tmp_path / "slices").split("val")


def predictions(x0, key, timesteps):
    """HGP and UGP of a slice, in float64: eqs. 2, 4, 6, 7, 10."""
    abar, x0 = alpha_bar(), x0.astype(float)
    x = None
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        a = abar[t - 1]
        if x is None:
            x = np.sqrt(a) * x0 + np.sqrt(1 - a) * slice_noise(0, key, t, x0.shape)
        eps_h, eps_0 = (eps[0] for eps in network(x[None], np.array([t])))
        eps_w = (1 + W) * eps_h - W * eps_0
        HGP, UGP = (np.clip((x - np.sqrt(1 - a) * e) / np.sqrt(a), -1, 1) for e in (eps_w, eps_0))
        yield HGP, UGP
        if following:
            b = abar[following - 1]
            x = np.sqrt(b) * UGP + np.sqrt(1 - b) * (x - np.sqrt(a) * UGP) / np.sqrt(1 - a)


@pytest.fixture
def curves(labelled):
    """Timesteps and, for each slice, M, MSE_h, MSE_0 and the contrast of S_t."""
    timesteps = list(range(1, 602, 60))
    rows = []
    for i in range(N):
        x0, lesion = labelled.x0(i), labelled.mask(i)
        rest = (x0[0] > -0.95) & ~lesion
        steps = list(predictions(x0, i, timesteps))
        S = [(h[0] - x0[0]) ** 2 for h, _ in steps]
        rows.append((
            [np.mean((h - u) ** 2) for h, u in steps],
            [s.mean() for s in S],
            [np.mean((u - x0) ** 2) for _, u in steps],
            [s[lesion].mean() / s[rest].mean() if lesion.any() else np.nan for s in S],
        ))  # fmt: skip
    return np.array(timesteps), np.array(rows)


def test_figure_2_is_what_the_equations_give(toy, labelled, curves):
    found = panels.figures(toy, network, labelled)
    t, rows = curves
    sick = labelled.unhealthy
    t_e = t[rows[:, 0].argmax(axis=1)]
    assert (t_e < 601).any()
    for name, which in (("healthy", ~sick), ("unhealthy", sick)):
        a, b = found.panels["2a"], found.panels["2b"]
        np.testing.assert_array_equal(a.column("t"), t)
        M = rows[which, 0]
        np.testing.assert_allclose(a.column(f"{name}_mean"), M.mean(axis=0), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(
            a.column(f"{name}_q25"), np.percentile(M, 25, 0), rtol=1e-4, atol=1e-9
        )
        np.testing.assert_allclose(
            a.column(f"{name}_q75"), np.percentile(M, 75, 0), rtol=1e-4, atol=1e-9
        )
        shares = [np.mean(t_e[which] == step) for step in t]
        np.testing.assert_allclose(a.column(f"{name}_t_e_share"), shares)
        for k, kind in ((1, "MSE_h"), (2, "MSE_0")):
            want = rows[which, k].mean(axis=0)
            np.testing.assert_allclose(b.column(f"{name}_{kind}"), want, rtol=1e-4)
        assert found.numbers[f"{name}_t_e"] == np.median(t_e[which])
        assert found.numbers[f"{name}_peak_t"] == t[M.mean(axis=0).argmax()]

    ratio, peaks = rows[sick, 3], t_e[sick]
    c = found.panels["2c"]
    assert (c.column("slices") == 0).any()  # the process ends at 601
    assert ((0 < c.column("slices")) & (c.column("slices") < len(peaks))).any()
    for relative_t, *got, count in c.rows:
        values = [
            np.interp(relative_t * peak, t, one)
            for one, peak in zip(ratio, peaks, strict=True)
            if 1 <= relative_t * peak <= 601
        ]
        assert count == len(values)
        if values:
            want = [np.mean(values), *np.percentile(values, [50, 25, 75])]
            np.testing.assert_allclose(got, want, rtol=1e-4)
        else:
            assert np.isnan(got).all()
    at_t_e = [one[t == peak] for one, peak in zip(ratio, peaks, strict=True)]
    assert found.numbers["ratio_at_t_e"] == pytest.approx(np.mean(at_t_e), rel=1e-4)

    d = found.panels["2d"]
    cm2 = [labelled.mask(i).sum() * 0.75**2 for i in np.flatnonzero(sick)]
    np.testing.assert_allclose(d.column("lesion_cm2"), cm2)
    np.testing.assert_allclose(d.column("max_M"), rows[sick, 0].max(axis=1), rtol=1e-4)
    r = stats.pearsonr(cm2, rows[sick, 0].max(axis=1)).statistic
    assert found.numbers["r"] == pytest.approx(r, abs=1e-4)


@pytest.mark.slow
def test_figure_5_is_what_the_evaluation_says_of_each_set_up(toy, labelled):
    found = panels.figures(toy, network, labelled)

    def scores(**wish):
        segmenter = Segmenter(toy, NumpyBackend(network), options=Options(**wish))
        one = evaluate(segmenter, labelled).unhealthy
        return [one.dice, one.auprc]

    dynamic = scores()
    assert 0 < dynamic[0] < 1
    np.testing.assert_allclose([found.numbers["dice"], found.numbers["auprc"]], dynamic)
    assert [row[0] for row in found.panels["5a"].rows] == [2.0, 5.0]  # tried at this L
    assert [row[0] for row in found.panels["5b"].rows] == list(panels.T_E_RATIOS)
    assert len(found.panels["5d"].rows) == 6
    distinct = {tuple(dynamic)}
    for w, *got in found.panels["5a"].rows:
        np.testing.assert_allclose(got, scores(w=w))
    for ratio, *got in found.panels["5b"].rows:
        np.testing.assert_allclose(got, scores(t_e_ratio=ratio))
        distinct.add(tuple(got))
    for sub_map, kind, *got in found.panels["5d"].rows:
        np.testing.assert_allclose(got, scores(sub_map=sub_map, anomaly_map=kind))
        distinct.add(tuple(got))
    assert len(distinct) > 6
    results = Segmenter(toy, NumpyBackend(network)).segment_slices(
        panels.Slice(i, labelled.x0(i)) for i in np.flatnonzero(labelled.unhealthy).tolist()
    )
    median = np.median([result.Q for result in results])
    for Q, multiple, got in found.panels["5c"].rows[::3]:
        assert Q == pytest.approx(multiple * median)
        assert got == pytest.approx(scores(Q=Q)[0])
    assert found.panels["5c"].column("dice").std() > 0.05


def test_the_network_is_called_once_for_each_noisy_slice(toy, labelled, monkeypatch):
    for _ in range(2):  # nothing is kept from a call to the next
        cached = panels.CachedDenoiser(network)
        monkeypatch.setattr(panels, "CachedDenoiser", lambda denoiser, c=cached: c)
        panels.figures(toy, None, labelled)
        assert cached.evaluations == N * 11
        monkeypatch.undo()
    x = np.stack([labelled.x0(0), labelled.x0(1), labelled.x0(0)])
    for t, new in (([5, 5, 5], 2), ([5, 5, 5], 2), ([5, 5, 100], 3)):
        for got, want in zip(cached(x, np.array(t)), network(x, np.array(t)), strict=True):
            np.testing.assert_array_equal(got, want)
        assert cached.evaluations == N * 11 + new


def test_the_command_writes_panels_and_pictures(toy, labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "open_bundle", lambda path: toy)
    monkeypatch.setattr(quality, "OnnxDenoiser", lambda path, threads: network)
    monkeypatch.setattr(type(toy), "network", property(lambda self: None))
    out = tmp_path / "figures"
    arguments = [str(tmp_path / "slices"), "--split", "val", "-o", str(out)]
    done = CliRunner().invoke(quality.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = panels.figures(toy, network, labelled)
    for name in ("2a", "2b", "2c", "2d", "5a", "5b", "5c", "5d"):
        with (out / f"figure{name}.csv").open(newline="") as file:
            head, *rows = csv.reader(file)
        panel = found.panels[name]
        assert tuple(head) == panel.head
        for row, want in zip(rows, panel.rows, strict=True):
            for text, value in zip(row, want, strict=True):
                if isinstance(value, str):
                    assert text == value
                else:
                    assert float(text or "nan") == pytest.approx(value, rel=1e-5, nan_ok=True)
    for name in ("figure2.png", "figure5.png"):
        pixels = imread(out / name)
        assert pixels.shape[1] == pytest.approx(1600, abs=20)
        # Panels on white, each with something drawn in it.
        height, width = (n // 2 for n in pixels.shape[:2])
        for panel in (pixels[:height, :width], pixels[:height, width:],
                      pixels[height:, :width], pixels[height:, width:]):  # fmt: skip
            assert 0.01 < (panel[..., :3] < 0.9).any(axis=-1).mean() < 0.5
    # The bars of the last panel: more green than lines make.
    green = np.abs(panel[..., :3] - np.array([0, 0x9E, 0x73]) / 255).max(axis=-1) < 0.05
    assert green.mean() > 0.01
    assert f"{found.numbers['r']:.2f}" in done.output
    assert f"{found.numbers['ratio_at_t_e']:.2f}" in done.output
    assert f"{N} slices of 3 patients of the val split, 4 unhealthy" in done.output


def test_slices_of_one_kind_are_refused(toy, labelled):
    with pytest.raises(CohortError, match="healthy and unhealthy"):
        panels.figures(toy, network, labelled.take([0, 2]))
    undrawn = replace(labelled, records=tuple(replace(r, drawn=False) for r in labelled.records))
    with pytest.raises(CohortError, match="drawn"):
        panels.figures(toy, network, undrawn)


def test_the_contrast_of_a_map_that_is_three_times_as_high_in_the_lesion():
    head, lesion = np.zeros((2, 8, 8), bool)
    head[1:7, 1:7], lesion[2:4, 2:4] = True, True
    S = np.where(lesion, 3, np.where(head, 1, 100)).astype(np.float32)[None]
    assert panels.contrast(S, lesion, head) == pytest.approx([3])
    assert np.isnan(panels.contrast(S, ~head & False, head)).all()
