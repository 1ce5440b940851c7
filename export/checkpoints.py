"""Reading checkpoints of anofpdm-train, and state_dicts of the reference implementation."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anofpdm.runtime.errors import CheckpointError
from anofpdm.runtime.util.files import sha256
from anofpdm.runtime.volume.grid import Grid
from anofpdm.train.checkpoint import MARK, Checkpoint, parse_checkpoint, read_data
from anofpdm.train.config import TrainConfig, UNetConfig
from anofpdm.train.unet import UNet


def reference_grid(size: int = 128) -> Grid:
    """The slices that the reference implementation trains on: BraTS images of 240 x 240 pixels of
    1 mm as they are stored (LP), brought to ``size`` pixels a side, each scaled by itself."""
    return Grid(size, 240 / size, scaling="slice", center="image", axes="LP")


@dataclass(frozen=True)
class CheckpointOptions:
    """The part of the configuration that a reference state_dict lacks; None for the default.

    Checkpoints of anofpdm-train have all of it: values that are given must be the same.
    """

    modalities: tuple[str, ...] | None = None  # names of the channels, in order; no default
    heads: int | None = None  # of the attention; default 4
    image_size: int | None = None  # pixels a side of the training slices; default 128
    pixel_mm: float | None = None  # their spacing; default 240 / image_size
    axes: str | None = None  # directions of their rows and columns, see Grid; default LP


def read_source(path: Path, options: CheckpointOptions = CheckpointOptions()) -> Checkpoint:
    """Read a checkpoint of either kind, without running code that it may have.

    Raises
    ------
    CheckpointError
        If it is neither, has anything but data, or does not fit the options.
    """
    content = read_data(path)
    if isinstance(content, dict) and MARK in content:
        checkpoint = parse_checkpoint(content, path)
        _check(path, "--modalities", options.modalities, checkpoint.modalities)
        _check(path, "--heads", options.heads, checkpoint.unet.num_heads)
        _check(path, "--image-size", options.image_size, checkpoint.unet.image_size)
        _check(path, "--pixel-mm", options.pixel_mm, checkpoint.grid.pixel_mm)
        _check(path, "--axes", options.axes, checkpoint.grid.axes)
        return checkpoint
    if not is_reference(content):
        raise CheckpointError(
            f"{path} is neither a checkpoint of anofpdm-train nor a state_dict of the reference "
            "U-Net: give model.pt of the one or ema_*.pt of the other"
        )
    if options.modalities is None:
        raise CheckpointError(
            f"{path} is a state_dict of the reference U-Net and does not name its channels: add "
            "--modalities, in the order of training, for instance flair,t1,t1ce,t2"
        )
    grid = reference_grid(options.image_size or 128)
    grid = replace(grid, pixel_mm=options.pixel_mm or grid.pixel_mm, axes=options.axes or grid.axes)
    return reference_checkpoint(content, path, options.modalities, options.heads or 4, grid)


def _check(path: Path, name: str, given: object, trained: object) -> None:
    """Raise CheckpointError if the option ``name`` is given and not that of the training."""
    if given is not None and given != trained:
        ours, theirs = (
            ",".join(value) if isinstance(value, tuple) else value for value in (given, trained)
        )
        raise CheckpointError(f"{name} {ours}: {path} was trained with {theirs}; leave it out")


Shapes = Mapping[str, tuple[int, ...]]
_BODY = ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight")
_LABELS = ("label_emb.weight", "class_emb.0.weight")
_STEP = re.compile(r"(?:model|ema_[0-9.]+_)(\d+)\.pt")


@dataclass(frozen=True)
class ReferenceCheckpoint(Checkpoint):
    """Weights of the reference implementation; ``train`` is a placeholder."""

    def training(self) -> None:
        """None: the file has weights only."""
        return


def is_reference(content: Any) -> bool:
    """Whether the content of a file looks like a state_dict of the reference U-Net."""
    if not isinstance(content, Mapping) or not content:
        return False
    if not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items()):
        return False
    return all(name in _bare_names(content) for name in _BODY)


def reference_checkpoint(
    content: Mapping[str, torch.Tensor],
    path: Path,
    modalities: tuple[str, ...],
    heads: int,
    grid: Grid,
) -> ReferenceCheckpoint:
    """The network in a ``state_dict`` for which :func:`is_reference` holds.

    The reference implementation gives networks of two or three modalities three outputs, and
    twice as many with learned variances. The first outputs are the noise of the modalities; the
    others are removed.

    Parameters
    ----------
    content : weights by name, float16 or float32; names may begin with ``module.``
    path : file of the weights, for messages and provenance
    modalities : names of the input channels, in order
    heads : of the attention
    grid : of the training slices

    Raises
    ------
    CheckpointError
        If the weights are not those of a reference U-Net with its label layers, or do not fit the
        modalities, the heads or the image size.
    """
    state = _bare_names(content)
    try:
        config = read_config({name: tuple(t.shape) for name, t in state.items()}, heads, grid.size)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    channels, outputs = config.in_channels, config.out_channels or config.in_channels
    if len(modalities) != channels:
        raise CheckpointError(
            f"{path} takes {channels} modalities, --modalities names {len(modalities)}: name "
            "each channel, in the order of training"
        )
    if outputs < channels:
        raise CheckpointError(
            f"{path} predicts {outputs} of {channels} channels (out.2.weight): it needs as many "
            "outputs as inputs"
        )
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} has values that are not finite floating numbers")
    weights = {name: tensor.to(torch.float32) for name, tensor in state.items()}
    for name in ("out.2.weight", "out.2.bias"):
        weights[name] = weights[name][:channels].clone()
    step = _STEP.fullmatch(path.name)
    return ReferenceCheckpoint(
        unet=replace(config, out_channels=None),
        train=TrainConfig(),
        modalities=modalities,
        grid=grid,
        step=int(step[1]) if step else 0,
        weights=weights,
        ema=weights,
        optimizer={},
        data={
            "source": "state_dict of the reference implementation",
            "file": path.name,
            "sha256": sha256(path),
            "outputs_cut_off": outputs - channels,
        },
    )


def read_config(shapes: Shapes, heads: int = 4, image_size: int = 128) -> UNetConfig:
    """The configuration of the reference U-Net whose parameters have these names and shapes.

    Raises
    ------
    ValueError
        If there is none; the message names the first parameter that does not fit.
    """
    for name in _LABELS:
        if name not in shapes:
            raise ValueError(
                f"{name} is missing: the network was trained without labels, AnoFPDM needs the "
                "labels healthy and unhealthy"
            )
    base = _size(shapes, "time_embed.0.weight", 1)
    levels = _levels(shapes)
    for name, width, _ in (level[0] for level in levels):
        if width % base:
            raise ValueError(f"{name} has {width} channels, not a multiple of the width {base}")
    in_channels = _size(shapes, "input_blocks.0.0.weight", 1)
    out_channels = _size(shapes, "out.2.weight", 0)
    try:
        config = UNetConfig(
            in_channels=in_channels,
            image_size=image_size,
            base_width=base,
            channel_mult=tuple(level[0][1] // base for level in levels),
            num_res_blocks=len(levels[0]),
            attention_resolutions=tuple(
                image_size >> depth for depth, level in enumerate(levels) if level[0][2]
            ),
            num_heads=heads,
            out_channels=None if out_channels == in_channels else out_channels,
        )
    except ValueError as error:
        raise ValueError(f"{error}: see --heads and --image-size") from error
    _compare(shapes, config)
    return config


def _levels(shapes: Shapes) -> list[list[tuple[str, int, bool]]]:
    """The residual blocks by level: name of a parameter, width, whether attention follows."""
    levels: list[list[tuple[str, int, bool]]] = [[]]
    for i in range(1, len(shapes)):
        conv, down = f"input_blocks.{i}.0.in_layers.2.weight", f"input_blocks.{i}.0.op.weight"
        if conv in shapes:
            attends = f"input_blocks.{i}.1.qkv.weight" in shapes
            levels[-1].append((conv, _size(shapes, conv, 0), attends))
        elif down in shapes and levels[-1]:
            levels.append([])
        else:
            break
    if not levels[-1]:
        raise ValueError(f"{conv} is missing: a level has no residual block")
    return levels


def _compare(shapes: Shapes, config: UNetConfig) -> None:
    """Raise ValueError unless names and shapes are those of the network."""
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in UNet(config).state_dict().items()}
    network = (
        f"a reference U-Net of width {config.base_width}, multipliers "
        f"{','.join(map(str, config.channel_mult))} and {config.num_res_blocks} residual blocks "
        "a level"
    )
    for name, shape in expected.items():
        if name not in shapes:
            raise ValueError(f"{name} is missing for {network}")
        if shapes[name] != shape:
            raise ValueError(f"{name} has shape {shapes[name]}, not {shape} as in {network}")
    for name in shapes:
        if name not in expected:
            raise ValueError(f"{name} does not belong to {network}")


def _size(shapes: Shapes, name: str, axis: int) -> int:
    shape = shapes[name]
    if len(shape) <= axis or shape[axis] < 1:
        raise ValueError(f"{name} has shape {shape}, which no weight of the reference U-Net has")
    return shape[axis]


def _bare_names(content: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The content without the prefix of ``DistributedDataParallel``."""
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}
