"""What can be exported: checkpoints of anofpdm-train, and those of the reference implementation."""

from __future__ import annotations

from pathlib import Path

from anofpdm.runtime.errors import CheckpointError
from anofpdm.train.checkpoint import MARK, Checkpoint, parse_checkpoint, read_data

from .reference import is_reference, reference_checkpoint


def read_source(
    path: Path,
    modalities: tuple[str, ...] | None = None,
    heads: int | None = None,
    image_size: int | None = None,
) -> Checkpoint:
    """Read a checkpoint of either kind, without running code that it may hold.

    Parameters
    ----------
    modalities : names of the channels in their order; must be given for a ``state_dict`` of the
        reference implementation, which does not name them
    heads, image_size : of a reference U-Net; default 4 and 128. Our own checkpoints know all
        three: what is given must agree

    Raises
    ------
    CheckpointError
        If it is neither, holds anything but data, or does not fit what is given.
    """
    if modalities is not None and (
        not all(modalities) or len(set(modalities)) != len(modalities) or not modalities
    ):
        raise CheckpointError(
            f"--modalities {','.join(modalities)}: give different names, with commas between them"
        )
    content = read_data(path)
    if isinstance(content, dict) and MARK in content:
        checkpoint = parse_checkpoint(content, path)
        _check(path, "--modalities", modalities, checkpoint.modalities)
        _check(path, "--heads", heads, checkpoint.unet.num_heads)
        _check(path, "--image-size", image_size, checkpoint.unet.image_size)
        return checkpoint
    if not is_reference(content):
        raise CheckpointError(
            f"{path} is neither a checkpoint of anofpdm-train nor a state_dict of the reference "
            "U-Net: give model.pt of the one or ema_*.pt of the other"
        )
    if modalities is None:
        raise CheckpointError(
            f"{path} is a state_dict of the reference U-Net and does not name its channels: add "
            "--modalities, in the order of training, for instance flair,t1,t1ce,t2"
        )
    return reference_checkpoint(content, path, modalities, heads or 4, image_size or 128)


def _check(path: Path, option: str, given: object, held: object) -> None:
    if given is not None and given != held:
        shown, known = (
            ",".join(value) if isinstance(value, tuple) else value for value in (given, held)
        )
        raise CheckpointError(f"{option} {shown}: {path} was trained with {known}; leave it out")
