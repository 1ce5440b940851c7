import dataclasses
import json

import pytest
from support import call as run_command

from anofpdm.runtime.bundle.bundle import DEFAULT
from anofpdm.runtime.volume.grid import Grid
from anofpdm.train.cli import main
from anofpdm.train.config import PRESETS, RunConfig, TrainConfig, unet_config


def call(*arguments, code=0):
    return run_command(main, "cohort", "-o", "run", *arguments, code=code)


def dry_run(*arguments):
    return RunConfig.parse(json.loads(call("--dry-run", *arguments)))


def test_without_options_it_is_the_preset():
    light = RunConfig(("flair",), Grid(), unet_config("light", 1, 128), PRESETS["light"][1])
    assert dry_run() == light
    assert dry_run("--preset", "reference").train == TrainConfig()


def test_options_change_their_field():
    got = dry_run("--affine", "0.1", "--gain", "0.3", "--bias", "0.1", "--no-flip",
                  "--unhealthy-share", "-1", "--loss-weight", "min-snr", "--label-in", "attention",
                  "--prediction", "x0",
                  "--channel-mult", "1,3", "--modalities", "t1,t2")  # fmt: skip
    light = PRESETS["light"][1]
    assert got.train == dataclasses.replace(
        light,
        affine=0.1,
        gain=0.3,
        bias=0.1,
        flip=False,
        unhealthy_share=-1.0,
        loss_weight="min-snr",
    )
    assert got.unet == unet_config("light", 2, 128, label_in="attention", prediction="x0",
                                   channel_mult=(1, 3))  # fmt: skip
    assert not PRESETS["reference"][1].flip
    assert dry_run("--preset", "reference", "--flip").train.flip


@pytest.mark.parametrize("wrong", [("--schedule", "linear"), ("--loss-weight", "snr"),
                                   ("--base-width", "40"), ("--preset", "heavy"),
                                   ("--channel-mult", "1,x")])  # fmt: skip
def test_impossible_options(wrong):
    assert wrong[1] in call("--dry-run", *wrong, code=2)


@pytest.mark.parametrize(
    "wrong",
    [("--num-heads", "0"), ("--patch", "0"), ("--base-width", "0"), ("--channel-mult", "0,1"),
     ("--dropout", "2"), ("--focus-t", "0"), ("--focus-t", "5000"), ("--label-dropout", "3"),
     ("--ema", "2"), ("--lr", "-1"), ("--contrast", "-1"), ("--strip", "-1"),
     ("--unhealthy-share", "2")],
)  # fmt: skip
def test_impossible_numbers(wrong):
    output = call("--dry-run", *wrong, code=2)
    assert "must be" in output
    assert output.count("\n") == 1


def test_the_help_shows_the_defaults_of_the_light_preset():
    output = " ".join(call("--help").split())
    for option, shown in (("--iterations", "7000"), ("--affine", "0.5"), ("--no-flip", "flip"),
                          ("--unhealthy-share", "0.5"), ("--loss-weight", "uniform"),
                          ("--label-in", "both"), ("--channel-mult", "1,2,2")):  # fmt: skip
        described = output.split(f"{option} ", 1)[1]
        assert described.split("[light: ", 1)[1].startswith(f"{shown}]"), option


def test_a_bundle_excludes_the_other_options():
    assert "leave out the other options" in call("--bundle", str(DEFAULT), "--no-flip", code=2)


def test_differences_are_listed_as_options():
    one, two = dry_run(), dry_run("--no-flip", "--modalities", "t1,t2", "--channel-mult", "1,2",
                                  "--image-size", "64")  # fmt: skip
    output = two.differences(one)
    assert output == ["--modalities t1,t2 (not flair)", "--image-size 64 (not 128)",
                    "--channel-mult 1,2 (not 1,2,2)", "--no-flip (not True)"]  # fmt: skip
    assert one.differences(one) == []
