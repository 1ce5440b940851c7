"""Checkpoints: weights, EMA weights, configurations and the step, readable without unpickling."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from anofpdm.runtime.errors import CheckpointError
from anofpdm.runtime.util.files import whole_file
from anofpdm.runtime.volume.grid import Grid

from .config import RunConfig, TrainConfig, UNetConfig
from .unet import UNet

MARK = "anofpdm_checkpoint"
_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A training run at one step."""

    unet: UNetConfig  # shape of the network
    train: TrainConfig  # training
    modalities: tuple[str, ...]  # names of the C channels
    grid: Grid  # of the slices
    step: int  # finished iterations
    weights: Mapping[str, torch.Tensor]  # state_dict of the trained network
    ema: Mapping[str, torch.Tensor]  # state_dict of its exponential moving average
    optimizer: Mapping[str, Any]  # state_dict of the optimizer, to resume
    data: Mapping[str, Any]  # cohort and numbers of slices, JSON values

    @property
    def config(self) -> RunConfig:
        """The configuration, which must be the same to resume."""
        return RunConfig(self.modalities, self.grid, self.unet, self.train)

    def network(self) -> UNet:
        """The EMA network, in evaluation mode.

        Raises
        ------
        CheckpointError
            If the weights do not fit the configuration.
        """
        unet = UNet(self.unet)
        try:
            unet.load_state_dict(self.ema)
        except RuntimeError as error:
            raise CheckpointError(
                "the checkpoint's weights do not fit its configuration"
            ) from error
        return unet.eval()

    def training(self) -> dict[str, Any] | None:
        """The training for a bundle's provenance, JSON values; None if unknown."""
        return asdict(self.train)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    content = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    for name in ("unet", "train", "grid"):
        content[name] = asdict(content[name])
    with whole_file(path) as temporary:
        torch.save({MARK: _FORMAT, **content}, temporary)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of :func:`save_checkpoint`.

    Raises
    ------
    CheckpointError
        If the file does not exist, is no such checkpoint, or has anything but data.
    """
    return parse_checkpoint(read_data(path), path)


def read_data(path: Path) -> Any:
    """The content of a file of ``torch.save``, without running code that it may have.

    Raises
    ------
    CheckpointError
        If the file does not exist, is no such file, or has anything but data.
    """
    if not path.is_file():
        wrong = "is a folder: name a file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {wrong}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        raise CheckpointError(
            f"{path} is not a checkpoint that loads without running code ({type(error).__name__})"
        ) from error


def parse_checkpoint(content: Any, path: Path) -> Checkpoint:
    """The checkpoint in ``content``, read from ``path``; errors as :func:`load_checkpoint`."""
    if not isinstance(content, dict) or content.get(MARK) != _FORMAT:
        raise CheckpointError(f"{path} was not written by this version of anofpdm-train")
    content = {name: value for name, value in content.items() if name != MARK}
    try:
        return Checkpoint(**{**content, **vars(RunConfig.parse(content))})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is incomplete: {error}") from error
