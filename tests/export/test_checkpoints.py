import dataclasses
import os
import pickle

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support import shared

from anofpdm.export.checkpoints import (
    CheckpointOptions,
    ReferenceCheckpoint,
    read_config,
    read_source,
    reference_grid,
)
from anofpdm.export.cli import main
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.bundle import NETWORK, open_bundle
from anofpdm.runtime.errors import CheckpointError
from anofpdm.runtime.volume.grid import Grid
from anofpdm.train.checkpoint import Checkpoint, save_checkpoint
from anofpdm.train.config import TrainConfig, UNetConfig
from anofpdm.train.unet import HEALTHY, UNet

TINY = UNetConfig(2, 32, 32, (1, 2), 1, (16,), out_channels=3)


def shapes(config):
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in UNet(config).state_dict().items()}


def state(config=TINY):
    torch.manual_seed(0)
    return UNet(config).state_dict()


@pytest.fixture
def saved(tmp_path):
    """Writes what a test makes of the tiny network's weights; returns the file."""

    def save(content, name="ema_0.9999_000123.pt"):
        path = tmp_path / name
        torch.save(content, path)
        return path

    return save


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(4),
        TINY,
        UNetConfig(1, 64, 32, (1, 2, 2, 3), 1, (16, 8), out_channels=2),
        UNetConfig(3, 64, 64, (1, 1, 4), 3, (64, 32, 16), num_heads=8, out_channels=6),
        UNetConfig(4, 256, 32, (2, 1, 3), 2, (64,), num_heads=1),
        UNetConfig(2, 32, 96, (1,), 1, ()),
        UNetConfig(2, 32, 32, (1, 2, 4), 4, (32, 8)),
    ],
    ids=str,
)
def test_the_shapes_tell_the_configuration(config):
    assert read_config(shapes(config), config.num_heads, config.image_size) == config


@pytest.mark.parametrize("prefix", ["", "module."])
def test_reading_a_state_dict(saved, prefix):
    weights = {name: tensor.half() for name, tensor in state().items()}
    path = saved({prefix + name: tensor for name, tensor in weights.items()})
    checkpoint = read_source(path, CheckpointOptions(("flair", "t2"), 4, 32))
    assert checkpoint.unet == dataclasses.replace(TINY, out_channels=None)
    assert checkpoint.modalities == ("flair", "t2")
    assert checkpoint.grid == reference_grid(32)
    assert checkpoint.step == 123
    assert checkpoint.training() is None
    assert checkpoint.data["outputs_cut_off"] == 1
    unet, whole = checkpoint.network(), UNet(TINY).eval()
    whole.load_state_dict(weights)
    x_t, t = torch.randn(2, 2, 32, 32), torch.tensor([3, 700])
    label = torch.full_like(t, HEALTHY)
    with torch.no_grad():
        eps = unet(x_t, t, label)
        assert eps.dtype == torch.float32
        torch.testing.assert_close(eps, whole(x_t, t, label)[:, :2], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "step"),
    [("model000000.pt", 0), ("model210000.pt", 210000), ("ema_0.9999_012345.pt", 12345),
     ("opt000010.pt", 0), ("flair.pt", 0)],
)  # fmt: skip
def test_the_step_is_in_the_name(saved, name, step):
    assert read_source(saved(state(), name), CheckpointOptions(("a", "b"), 4, 32)).step == step


def test_learned_variances_are_cut_off(saved):
    config = dataclasses.replace(TINY, in_channels=4, out_channels=8)
    weights = state(config)
    checkpoint = read_source(saved(weights), CheckpointOptions(tuple("abcd"), 4, 32))
    assert torch.equal(checkpoint.ema["out.2.weight"], weights["out.2.weight"][:4])


def changed(**changes):
    """The tiny network's weights with some replaced, or left out where None."""
    weights = {**state(), **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: value for name, value in weights.items() if value is not None}


def without(*beginnings):
    return {k: v for k, v in state().items() if not k.startswith(beginnings)}


NEITHER = "is neither a checkpoint of anofpdm-train nor a state_dict of the reference U-Net"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(3)}, NEITHER),
        ([1, 2], NEITHER),
        ({}, NEITHER),
        ({**state(), "epoch": 3}, NEITHER),
        ({"state_dict": state()}, NEITHER),
        ({"anofpdm_checkpoint": 99}, "not written by this version of anofpdm-train"),
        (without("label_emb", "class_emb"), "label_emb.weight is missing: the network was trained"),
        (without("class_emb"), "class_emb.0.weight is missing: the network was trained without"),
        (without("middle_block.1.encoder_kv"), "middle_block.1.encoder_kv.weight is missing"),
        (without("input_blocks.1"), "input_blocks.1.0.in_layers.2.weight is missing"),
        (without("input_blocks.3"), "input_blocks.3.0.in_layers.2.weight is missing"),
        (without("output_blocks.3"), "output_blocks.3.0.in_layers.0.weight is missing"),
        (changed(extra=torch.zeros(2)), "extra does not belong to"),
        (changed(out__0__bias=torch.zeros(7)), r"out.0.bias has shape \(7,\), not \(32,\)"),
        (changed(time_embed__0__weight=torch.zeros(7)), r"time_embed.0.weight has shape \(7,\)"),
        (changed(time_embed__0__weight=torch.zeros(128, 33)), "64 channels, not a multiple|has 32"),
        (changed(label_emb__weight=torch.zeros(5, 32)), r"label_emb.weight has shape \(5, 32\)"),
        (
            changed(out__0__bias=torch.zeros(32, dtype=torch.int64)),
            "out.0.bias has values that are not",
        ),
        (changed(out__0__bias=torch.full((32,), torch.nan)), "out.0.bias has values that are not"),
        (state(dataclasses.replace(TINY, out_channels=1)), "predicts 1 of 2 channels"),
    ],
)
def test_what_is_not_a_reference_network(saved, content, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read_source(saved(content), CheckpointOptions(("flair", "t2"), 4, 32))
    assert "\n" not in str(caught.value)


def test_uneven_levels_name_the_block_that_is_one_too_many(saved):
    """A level with two residual blocks after one with a single one."""
    weights = state(dataclasses.replace(TINY, out_channels=None, num_res_blocks=1))
    more = {
        name.replace("input_blocks.3.", "input_blocks.4."): tensor
        for name, tensor in weights.items()
        if name.startswith("input_blocks.3.")
    }
    with pytest.raises(CheckpointError, match=r"input_blocks.4.0.in_layers.0.weight does not"):
        read_source(saved({**weights, **more}), CheckpointOptions(("flair", "t2"), 4, 32))


@pytest.mark.parametrize(
    ("modalities", "heads", "size", "message"),
    [
        (None, 4, 32, "does not name its channels: add --modalities"),
        (("flair",), 4, 32, "takes 2 modalities, --modalities names 1"),
        (tuple("abc"), 4, 32, "takes 2 modalities, --modalities names 3"),
        (("a", "b"), 5, 32, "num_heads must divide all widths.*--heads"),
        (("a", "b"), 4, 33, "image_size must be a multiple of 2.*--image-size"),
    ],
)
def test_what_is_given_must_fit(saved, modalities, heads, size, message):
    with pytest.raises(CheckpointError, match=message):
        read_source(saved(state()), CheckpointOptions(modalities, heads, size))


def test_the_grid_is_that_of_brats_unless_told_otherwise(saved):
    names = ("a", "b")
    assert read_source(saved(state()), CheckpointOptions(names, 4, 32)).grid == reference_grid(32)
    grid = read_source(saved(state()), CheckpointOptions(names, 4, 32, 1.5, "RA")).grid
    assert (grid.pixel_mm, grid.axes, grid.scaling) == (1.5, "RA", "slice")


def test_our_own_checkpoints_know_all_of_it(tmp_path):
    path = tmp_path / "model.pt"
    config = UNetConfig(1, 32, 32, (1, 2), 1, (16,))
    weights = state(config)
    save_checkpoint(
        Checkpoint(config, TrainConfig(), ("flair",), Grid(32, 7.5), 1, weights, weights, {}, {}),
        path,
    )
    plain = read_source(path)
    assert not isinstance(plain, ReferenceCheckpoint)
    assert plain.training() == dataclasses.asdict(TrainConfig())
    assert read_source(path, CheckpointOptions(("flair",), 4, 32, 7.5, "RA")).unet == config
    for given in ({"modalities": ("t1",)}, {"heads": 2}, {"image_size": 64}, {"pixel_mm": 1.0},
                  {"axes": "LP"}):  # fmt: skip
        with pytest.raises(CheckpointError, match=r"was trained with .*; leave it out"):
            read_source(path, CheckpointOptions(**given))


class Hostile:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "write", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))]
)
def test_code_in_a_checkpoint_is_not_run(tmp_path, write):
    write({**state(), "extra": Hostile(tmp_path / "ran")}, tmp_path / "model.pt")
    refused(tmp_path, tmp_path / "model.pt", "not a checkpoint that loads without running code")


@pytest.mark.parametrize("options", [["--modalities", "flair"], []])
def test_the_command_refuses_in_one_line(tmp_path, saved, options):
    refused(tmp_path, saved(state()), "--modalities", *options, "--image-size", "32")


def refused(folder, ckpt, message, *options):
    before = sorted(folder.iterdir())
    out = folder / "out.anofpdm"
    result = CliRunner().invoke(main, ["--ckpt", str(ckpt), "-o", str(out), *options])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert result.stdout == ""
    assert sorted(folder.iterdir()) == before


@pytest.mark.shared
@pytest.mark.slow
def test_a_checkpoint_of_the_authors_code_becomes_a_bundle(tmp_path):
    """Against what their implementation computed. In float16 the weights, which are random, give a
    mask of few scattered pixels that is another one: its Dice is below the gate's."""
    folder, out = shared("fixtures", "reference-unet"), tmp_path / "reference.anofpdm"
    result = CliRunner().invoke(
        main,
        ["--ckpt", str(folder / "unet.pt"), "-o", str(out), "--modalities", "flair,t2",
         "--image-size", "64", "--scored", "flair", "--no-fp16"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    manifest = open_bundle(out).manifest
    assert manifest.modalities == ("flair", "t2")
    assert manifest.scored == ("flair",)
    assert manifest.grid == reference_grid(64)
    assert manifest.architecture["channel_mult"] == [1, 2, 2, 3]
    assert manifest.provenance["training"] is None
    assert manifest.provenance["iterations"] is None
    recorded = np.load(folder / "unet_eps.npz")
    got = OnnxDenoiser(out / NETWORK)(recorded["x_t"], recorded["t"] + 1)
    for name, eps in zip(("eps_healthy", "eps_null"), got, strict=True):
        assert eps.shape == (3, 2, 64, 64)
        np.testing.assert_allclose(eps, recorded[name][:, :2], rtol=0, atol=1e-5)
