"""What can be exported: checkpoints of anofpdm-train, and those of the reference implementation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from anofpdm.runtime.errors import CheckpointError
from anofpdm.runtime.volume.grid import reference_grid
from anofpdm.train.checkpoint import MARK, Checkpoint, parse_checkpoint, read_data

from .reference import is_reference, reference_checkpoint


@dataclass(frozen=True)
class Asked:
    """What the weights of a reference U-Net do not tell; None for the default.

    ``modalities``: names of the channels in their order, which must be given; ``heads`` of its
    attention (4), ``image_size`` (128), ``pixel_mm`` (240 / image_size) and ``axes`` (LP) of the
    slices it was trained on. Our own checkpoints know all of them: what is given must agree.
    """

    modalities: tuple[str, ...] | None = None
    heads: int | None = None
    image_size: int | None = None
    pixel_mm: float | None = None
    axes: str | None = None


def read_source(path: Path, asked: Asked = Asked()) -> Checkpoint:
    """Read a checkpoint of either kind, without running code that it may hold.

    Raises
    ------
    CheckpointError
        If it is neither, holds anything but data, or does not fit what is given.
    """
    content = read_data(path)
    if isinstance(content, dict) and MARK in content:
        checkpoint = parse_checkpoint(content, path)
        _check(path, "--modalities", asked.modalities, checkpoint.modalities)
        _check(path, "--heads", asked.heads, checkpoint.unet.num_heads)
        _check(path, "--image-size", asked.image_size, checkpoint.unet.image_size)
        _check(path, "--pixel-mm", asked.pixel_mm, checkpoint.grid.pixel_mm)
        _check(path, "--axes", asked.axes, checkpoint.grid.axes)
        return checkpoint
    if not is_reference(content):
        raise CheckpointError(
            f"{path} is neither a checkpoint of anofpdm-train nor a state_dict of the reference "
            "U-Net: give model.pt of the one or ema_*.pt of the other"
        )
    if asked.modalities is None:
        raise CheckpointError(
            f"{path} is a state_dict of the reference U-Net and does not name its channels: add "
            "--modalities, in the order of training, for instance flair,t1,t1ce,t2"
        )
    grid = reference_grid(asked.image_size or 128)
    grid = replace(grid, pixel_mm=asked.pixel_mm or grid.pixel_mm, axes=asked.axes or grid.axes)
    return reference_checkpoint(content, path, asked.modalities, asked.heads or 4, grid)


def _check(path: Path, option: str, given: object, held: object) -> None:
    if given is not None and given != held:
        shown, known = (
            ",".join(value) if isinstance(value, tuple) else value for value in (given, held)
        )
        raise CheckpointError(f"{option} {shown}: {path} was trained with {known}; leave it out")
