"""The options of ``anofpdm-train`` that change what a preset says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import click

from anofpdm.runtime.cli.arguments import SEED
from anofpdm.runtime.errors import AnofpdmError
from anofpdm.runtime.volume.grid import Grid

from .config import PRESETS, TrainConfig, unet_config
from .run_config import RunConfig

_SHOWN = "light"
_NETWORK: tuple[tuple[str, Any, str], ...] = (
    ("--base-width", int, ""),
    ("--channel-mult", str, "Numbers, with commas."),
    ("--num-res-blocks", int, ""),
    ("--attention-resolutions", str, "Numbers, with commas."),
    ("--num-heads", int, ""),
    ("--dropout", float, ""),
    ("--patch", int, "Pixels a side that become channels."),
    ("--prediction", click.Choice(["eps", "v", "x0"]), "What the layers predict."),
    ("--label-in", click.Choice(["both", "attention"]), "Both: the time embedding, too."),
)
_TRAINING: tuple[tuple[str, Any, str], ...] = (
    ("--iterations", int, ""),
    ("--batch", int, "Slices an iteration, over all processes."),
    ("--lr", float, ""),
    ("--warmup", int, "Iterations."),
    ("--schedule", click.Choice(["cosine", "constant"]), ""),
    ("--ema", float, ""),
    ("--label-dropout", float, "Share of samples without a label."),
    ("--contrast", float, "Weight of telling labels apart by their errors."),
    ("--seed", SEED, "Also draws the splits."),
    ("--unhealthy-share", float, "Share drawn from unhealthy slices; -1: as they come."),
    ("--focus-t", int, "Draw timesteps up to this one more often."),
    ("--focus-share", float, "The share of draws from up to --focus-t alone."),
    ("--loss-weight", click.Choice(["uniform", "min-snr"]), "Of the timesteps."),
    ("--strip", float, "Share of slices shown without their skull."),
    ("--affine", float, "Share of slices rotated, scaled and shifted."),
    ("--gain", float, "Largest relative change of contrast."),
    ("--bias", float, "Largest logarithm of a smooth field of intensities."),
    ("--flip/--no-flip", bool, "Swap left and right at random."),
)


def config_options(body: Callable[..., None]) -> Callable[..., None]:
    """Options that the command receives by the names of the fields they change, None if not given.

    The help shows the values of the preset ``light``.
    """
    network, training = unet_config(_SHOWN, 1, 128), PRESETS[_SHOWN][1]
    for name, kind, text in reversed(_NETWORK + _TRAINING):
        config: object = network if (name, kind, text) in _NETWORK else training
        value = getattr(config, name.split("/")[0].removeprefix("--").replace("-", "_"))
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
        if kind is bool:
            shown = "flip" if value else "no-flip"
        described = f"{text}  [{_SHOWN}: {shown}]".strip()
        body = click.option(name, type=kind, default=None, help=described)(body)
    return body


def run_config(
    preset: str, modalities: tuple[str, ...], grid: Grid, options: Mapping[str, Any]
) -> RunConfig:
    """A preset with the options that are not None.

    Raises
    ------
    AnofpdmError
        If there is no such preset, or the options make no network or no training.
    """
    if preset not in PRESETS:
        raise AnofpdmError(f"no preset {preset!r}: there are {', '.join(PRESETS)}")
    changes = {name: value for name, value in options.items() if value is not None}
    training = {field.name for field in dataclasses.fields(TrainConfig)}
    try:
        for name in ("channel_mult", "attention_resolutions"):
            if name in changes:
                changes[name] = _numbers(name, changes[name])
        network = {name: value for name, value in changes.items() if name not in training}
        unet = unet_config(preset, len(modalities), grid.size, **network)
        chosen = {name: value for name, value in changes.items() if name in training}
        train = dataclasses.replace(PRESETS[preset][1], **chosen)
    except ValueError as error:
        raise AnofpdmError(str(error)) from error
    return RunConfig(modalities, grid, unet, train)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        option = name.replace("_", "-")
        raise AnofpdmError(f"--{option} {text}: write numbers with commas, 1,2,2") from None
