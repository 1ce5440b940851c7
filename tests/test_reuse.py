"""benchmarks/reuse.py: what is kept, what is computed anew, and what it costs."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support import ROOT, bundle, write_cohort

from anofpdm.export.both_labels import BothLabels
from anofpdm.runtime.volume.grid import Grid
from anofpdm.train.cohort import read_cohort
from anofpdm.train.config import UNetConfig
from anofpdm.train.dataset import open_sliceset
from anofpdm.train.prepare import prepare

SIZE = 32
TIMESTEPS = np.array([1, 61, 121, 181, 241, 301])
CONFIG = UNetConfig(
    in_channels=1, image_size=SIZE, base_width=32, channel_mult=(1, 1, 1), num_res_blocks=1,
    attention_resolutions=(4,), patch=2, prediction="v", dropout=0.0,
)  # fmt: skip


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import networks
    import reuse

    yield reuse, networks
    for name in ("reuse", "networks", "lesions", "machine"):
        sys.modules.pop(name, None)


@pytest.fixture
def network(benchmarks):
    return BothLabels(benchmarks[1].randomised(CONFIG, scale=0.05), "fp32")


def noisy(count, seed=0):
    shape = (count, 1, SIZE, SIZE)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(network, x_t, t):
    """The network as it is exported."""
    with torch.no_grad():
        return [eps.numpy() for eps in network(torch.from_numpy(x_t), torch.from_numpy(t - 1))]


def test_with_interval_one_nothing_is_reused(benchmarks, network):
    for depth in range(1, 7):
        denoiser = benchmarks[0].Reusing(network, TIMESTEPS, 1, depth)
        for seed, t in enumerate(TIMESTEPS):
            x_t, when = noisy(3, seed), np.full(3, t)
            for got, want in zip(denoiser(x_t, when), whole(network, x_t, when), strict=True):
                np.testing.assert_array_equal(got, want)


def test_what_is_kept_is_of_the_last_whole_step(benchmarks, network):
    """Every second step is whole, bit for bit; between, the same slice at the same time embedding
    would get the same answer, and another one does not."""
    denoiser = benchmarks[0].Reusing(network, TIMESTEPS, 2, 2)
    for i, t in enumerate(TIMESTEPS):
        x_t, when = noisy(2, i), np.full(2, t)
        got, want = denoiser(x_t, when), whole(network, x_t, when)
        assert np.array_equal(got[0], want[0]) == (i % 2 == 0)
        assert np.array_equal(got[1], want[1]) == (i % 2 == 0)
    network.unet.time_embed[2].weight.data.zero_()
    still = benchmarks[0].Reusing(network, TIMESTEPS, 2, 2)
    for t in TIMESTEPS[:2]:
        got = still(x_t, np.full(2, t))
    for one, want in zip(got, whole(network, x_t, np.full(2, t)), strict=True):
        np.testing.assert_array_equal(one, want)


def test_deeper_blocks_are_not_touched_between(benchmarks, network):
    unet, ran = network.unet, []
    kinds = {"down": unet.input_blocks, "up": unet.output_blocks, "middle": [unet.middle_block]}
    for kind, blocks in kinds.items():
        for i, block in enumerate(blocks):
            first = next(block.children())
            first.register_forward_hook(lambda *args, name=f"{kind}{i}": ran.append(name))
    for depth in (1, 2, 4):
        denoiser, counts = benchmarks[0].Reusing(network, TIMESTEPS, 3, depth), []
        for t in TIMESTEPS:
            ran.clear()
            denoiser(noisy(2), np.full(2, t))
            counts.append(set(ran))
        between = {f"down{i}" for i in range(depth)} | {f"up{5 - i}" for i in range(depth)}
        assert [len(one) for one in counts] == [13, 2 * depth, 2 * depth] * 2
        assert counts[1] == counts[5] == between


def test_slices_at_different_timesteps_are_refused(benchmarks, network):
    denoiser = benchmarks[0].Reusing(network, TIMESTEPS, 2, 1)
    with pytest.raises(ValueError, match="different timesteps"):
        denoiser(noisy(2), np.array([1, 61]))
    with pytest.raises(ValueError, match="interval from 1, depth 1 to 6"):
        benchmarks[0].Reusing(network, TIMESTEPS, 2, 7)


def test_costs_are_counted_and_less_the_less_is_computed(benchmarks, network):
    costs = benchmarks[0].cheaper(network, [1, 2, 4, 6], 2)
    shares = [costs[depth].flop for depth in (1, 2, 4, 6)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[2] < shares[3] < 1  # 6: the middle is left out
    with benchmarks[0].FlopCounterMode(display=False) as counter:
        network.unet.input_blocks[0][0](torch.zeros(1, 4, 16, 16))  # 3x3, 4 to 32 channels
    assert counter.get_total_flops() == 2 * 9 * 4 * 32 * 16 * 16
    assert all(cost.seconds > 0 for cost in costs.values())


def test_rows_cost_what_they_say(benchmarks):
    reuse, _ = benchmarks
    toy = bundle(process=("ddim", 601, 50, "log-snr"))
    held = replace(toy.calibrations["fast"], early_stop=None)
    toy = replace(toy, calibrations={"fast": held})
    costs = {1: reuse.Cheaper(0.25, 0.5), 2: reuse.Cheaper(0.5, 0.6)}
    rows = list(reuse.list_rows(toy, "fast", (2, 3), costs, 6))
    assert [(row.interval, row.depth) for row in rows[:5]] == [(1, 1), (2, 1), (2, 2), (3, 1),
                                                              (3, 2)]  # fmt: skip
    assert [row.flop for row in rows[:5]] == [13, 7 + 1.5, 7 + 3, 5 + 2, 5 + 4]
    assert rows[1].seconds == 7 + 3
    counts = [len(reuse.process(row.bundle, "fast").timesteps) for row in rows[5:]]
    assert counts == [10, 9, 8, 7] == [row.flop for row in rows[5:]]
    for row in rows[5:]:
        kept = row.bundle.calibrations["fast"]
        assert (kept.w, kept.M_max) == (held.w, held.M_max)
        assert reuse.process(row.bundle, "fast").timesteps[-1] == 601


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    """Prepared slices of four patients, two with lesions."""
    folder = tmp_path_factory.mktemp("reuse")
    cases = read_cohort(write_cohort(folder / "c", patients=4, modalities=("a",)), ("a",))
    cases = [replace(case, split="val") for case in cases]
    prepare(cases, ("a",), Grid(SIZE, 7.5), folder / "s", {}, lambda done, total: None)
    return folder / "s"


def test_the_command_compares_on_unhealthy_slices(
    benchmarks, network, slices, tmp_path, monkeypatch
):
    reuse, _ = benchmarks
    opened = open_sliceset(slices)
    toy = bundle(grid=opened.grid, process=("ddim", 301, 60, "log-snr"))
    monkeypatch.setattr(reuse, "open_bundle", lambda path: toy)

    class Found:
        def network(self):
            return benchmarks[1].randomised(CONFIG, scale=0.05)

    monkeypatch.setattr(reuse, "load_checkpoint", lambda path: Found())
    asked = [str(slices), "--every", "1", "--interval", "2", "--depth", "1", "--rounds", "1",
             "--json", str(tmp_path / "reuse.json")]  # fmt: skip
    done = CliRunner().invoke(reuse.main, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    held = json.loads((tmp_path / "reuse.json").read_text())
    assert held["slices"] == int(opened.unhealthy.sum()) == len(held["rows"][0]["dice_each"])
    base, reusing, fewer = held["rows"]
    assert (base["dice_gained"], base["flop_steps"], base["timesteps"]) == (0, 6, 6)
    gained = np.mean(np.subtract(reusing["dice_each"], base["dice_each"]))
    assert reusing["dice_gained"] == pytest.approx(gained)
    assert reusing["dice"] == pytest.approx(np.mean(reusing["dice_each"]))
    assert fewer["flop_steps"] <= reusing["flop_steps"] < 6
    assert done.stdout.count("\n| ") == 5
    assert str(tmp_path) not in (tmp_path / "reuse.json").read_text()
