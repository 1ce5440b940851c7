import os
import pickle
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import write_cohort

from anofpdm.runtime.errors import CheckpointError
from anofpdm.runtime.volume.grid import Grid
from anofpdm.train.augment import rough_brain_mask
from anofpdm.train.batches import Batches
from anofpdm.train.checkpoint import load_checkpoint
from anofpdm.train.cohort import assign_splits, read_cohort
from anofpdm.train.config import PRESETS, TrainConfig, unet_config
from anofpdm.train.dataset import open_sliceset
from anofpdm.train.loop import learning_rate, train
from anofpdm.train.objective import DenoisingLoss
from anofpdm.train.prepare import prepare
from anofpdm.train.unet import NULL, UNet

UNET = unet_config("light", 1, 32, base_width=32, dropout=0.1)
CONFIG = TrainConfig(iterations=8, batch=4, lr=1e-3, warmup=2, unhealthy_share=0.5, affine=0.5,
                     gain=0.2, strip=0.3, flip=True, schedule="cosine")  # fmt: skip


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slices")
    cases = assign_splits(read_cohort(write_cohort(folder / "c"), ("flair",)), 0)
    prepare(cases, ("flair",), Grid(32, 7.5), folder / "s", {}, lambda done, total: None)
    return open_sliceset(folder / "s").split("train")


def run(slices, folder, **options):
    folder.mkdir(exist_ok=True)
    return train(slices, UNET, CONFIG, folder / "model.pt", data={}, **options)


def test_resuming_gives_the_losses_and_weights_of_the_uninterrupted_run(slices, tmp_path):
    whole = run(slices, tmp_path / "whole")
    parts = [run(slices, tmp_path / "parts", stop_at=stop) for stop in (3, 5, None)]
    assert [len(part) for part in parts] == [3, 2, 3]
    assert [loss for part in parts for loss in part] == whole
    one, two = (load_checkpoint(tmp_path / name / "model.pt") for name in ("whole", "parts"))
    for name, value in one.ema.items():
        assert torch.equal(value, two.ema[name]), name


@pytest.mark.slow
def test_training_learns(slices, tmp_path):
    config = TrainConfig(iterations=120, batch=8, lr=2e-3, warmup=10, autocast=False, ema=0.9)
    losses = train(slices, UNET, config, tmp_path / "model.pt", data={})
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:5])


def test_contrast_is_part_of_the_loss(slices, tmp_path):
    plain, contrast = (
        train(slices, UNET, replace(CONFIG, contrast=weight), tmp_path / f"{weight}.pt", data={},
              stop_at=1)
        for weight in (0.0, 1.0)
    )  # fmt: skip
    # An untrained network answers alike under both labels: the entropy is that of a coin.
    assert contrast[0] - plain[0] == pytest.approx(np.log(2), rel=1e-3)


@pytest.mark.slow
def test_a_run_can_begin_with_another_runs_weights(slices, tmp_path):
    run(slices, tmp_path / "one")
    begun = load_checkpoint(tmp_path / "one/model.pt")
    still = TrainConfig(iterations=1, batch=4, lr=0.0)
    train(slices, UNET, still, tmp_path / "two.pt", data={}, init=begun)
    after = load_checkpoint(tmp_path / "two.pt")
    assert after.step == 1
    for name, value in begun.ema.items():
        assert torch.equal(after.weights[name], value), name
    other = unet_config("light", 1, 32, base_width=64)
    with pytest.raises(CheckpointError, match="another network"):
        train(slices, other, still, tmp_path / "three.pt", data={}, init=begun)


def test_other_options_do_not_resume(slices, tmp_path):
    run(slices, tmp_path, stop_at=1)
    other = TrainConfig(iterations=9, batch=4)
    with pytest.raises(CheckpointError, match="made with other options") as caught:
        train(slices, UNET, other, tmp_path / "model.pt", data={})
    message = str(caught.value)
    for wanted in ("--iterations 8 (not 9)", "--lr 0.001 (not 0.0001)", "--flip (not False)",
                   "--schedule cosine (not constant)"):  # fmt: skip
        assert wanted in message
    assert "--batch" not in message
    assert "--base-width" not in message


def test_checkpoints_of_before_an_option_existed_resume(slices, tmp_path):
    config = TrainConfig(iterations=2, batch=4)
    path = tmp_path / "model.pt"
    train(slices, UNET, config, path, data={}, stop_at=1)
    content = torch.load(path, weights_only=True)
    del content["unet"]["label_in"], content["train"]["loss_weight"]
    torch.save(content, path)
    assert len(train(slices, UNET, config, path, data={})) == 1


def test_checkpoint_loads_without_unpickling(slices, tmp_path):
    run(slices, tmp_path, stop_at=1)
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {"weights", "ema", "step", "unet", "train"} <= set(content)
    assert load_checkpoint(tmp_path / "model.pt").unet == UNET


class Evil:
    def __reduce__(self):
        return os.system, ("touch EVIL",)


@pytest.mark.parametrize("kind", ["missing", "text", "code", "another dictionary"])
def test_bad_checkpoints(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    if kind == "text":
        path.write_text("hello")
    elif kind == "code":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "another dictionary":
        torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "EVIL").exists()


def test_schedules():
    config = TrainConfig(iterations=100, lr=1.0, warmup=10, schedule="cosine")
    assert learning_rate(config, 0) == pytest.approx(0.1)
    assert learning_rate(config, 10) == pytest.approx(1.0)
    assert learning_rate(config, 55) == pytest.approx(0.5)
    assert learning_rate(config, 100) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(TrainConfig(lr=2.0, warmup=4), 9999) == 2.0


def test_batches_depend_on_seed_step_and_rank_alone(slices):
    batches = Batches(slices, CONFIG)
    first = batches[3]
    batches[9]
    for name, value in vars(Batches(slices, CONFIG)[3]).items():
        assert torch.equal(value, getattr(first, name)), name
    assert not torch.equal(batches[4].noise, first.noise)
    assert not torch.equal(Batches(slices, CONFIG, rank=1)[3].noise, first.noise)


def test_labels_are_dropped_and_classes_balanced(slices):
    config = TrainConfig(batch=2000, unhealthy_share=0.5, label_dropout=0.1)
    label = Batches(slices, config)[0].label.numpy()
    assert (label == NULL).mean() == pytest.approx(0.1, abs=0.03)
    assert (label == 1).sum() / (label != NULL).sum() == pytest.approx(0.5, abs=0.05)


def test_timesteps_are_focused(slices):
    config = TrainConfig(batch=2000, focus_t=600, focus_share=0.75)
    t = Batches(slices, config)[0].t.numpy()
    assert (t < 600).mean() == pytest.approx(0.75 + 0.25 * 0.6, abs=0.03)
    assert t.max() < 1000


def test_augmented_slices_stay_in_range(slices):
    x0 = Batches(slices, CONFIG)[0].x0
    assert float(x0.min()) >= -1
    assert float(x0.max()) <= 1


def test_a_bias_field_is_a_smooth_factor(slices):
    """At most exp(0.3), a quadratic in the pixels' places by its logarithm, and black stays so."""
    plain = replace(CONFIG, batch=16, affine=0.0, gain=0.0, strip=0.0, flip=False)
    before = Batches(slices, plain)[0].x0.numpy()[:, 0] + 1.0
    after = Batches(slices, replace(plain, bias=0.3))[0].x0.numpy()[:, 0] + 1.0
    assert np.array_equal(after == 0, before == 0)
    assert after.max() <= 2
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, 32)], indexing="ij")
    terms = np.stack([y, x, y * x, y * y, x * x], -1)
    factors = []
    for image, changed in zip(before, after, strict=True):
        seen = (image > 0) & (changed < 2)
        log = np.log(changed[seen] / image[seen])
        fitted, *_ = np.linalg.lstsq(terms[seen], log)
        np.testing.assert_allclose(terms[seen] @ fitted, log, atol=1e-4)
        factors.append(np.abs(log).max())
    assert 0.05 < max(factors) <= 0.3 + 1e-6
    assert len(set(factors)) > 8


def test_rough_brain_mask_cuts_the_scalp_off():
    x, y = np.meshgrid(*2 * [np.linspace(-120, 120, 128)], indexing="ij")
    radius = np.hypot(x, 0.85 * y)
    plane = np.full((128, 128), -1, np.float32)
    plane[radius < 70] = -0.2
    plane[(radius > 80) & (radius < 86)] = 0.8
    brain = rough_brain_mask(plane, 1.875)
    assert brain[radius < 66].all()
    assert not brain[radius > 78].any()
    assert rough_brain_mask(np.full((64, 64), -1, np.float32), 1.875).all()


def test_presets_fit_their_networks():
    for name in PRESETS:
        assert unet_config(name, 1, 128).in_channels == 1


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path):
    """After one iteration Adam's first moment is 0.1 times the clipped mean of both gradients."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = write_cohort(tmp_path / "c")
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--master-port", str(port), "-m", "anofpdm.train.cli", str(folder), "-o",
         str(tmp_path / "run"), "--image-size", "32", "--pixel-mm", "7.5", "--base-width", "32",
         "--iterations", "1", "--batch", "4"],
        check=True, capture_output=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    made = load_checkpoint(tmp_path / "run/model.pt")
    split = open_sliceset(tmp_path / "run/slices").split("train")
    torch.manual_seed(made.train.seed)
    loss = DenoisingLoss(UNet(made.unet))
    for rank in (0, 1):
        with torch.autocast("cpu", torch.bfloat16):
            (loss(Batches(split, made.train, rank, 2)[0]) / 2).backward()
    torch.nn.utils.clip_grad_norm_(loss.parameters(), made.train.grad_clip)
    moments = made.optimizer["state"]
    for number, parameter in enumerate(loss.unet.parameters()):
        want = 0.1 * parameter.grad
        torch.testing.assert_close(moments[number]["exp_avg"], want, atol=2e-5, rtol=2e-2)
