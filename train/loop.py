"""The training loop: one process, or many under ``torchrun``."""

import copy
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from anofpdm.runtime.errors import AnofpdmError, CheckpointError

from .batches import Batch, Batches
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .config import RunConfig, TrainConfig, UNetConfig
from .dataset import SliceSet
from .loss_record import LossRecord
from .objective import DenoisingLoss
from .unet import UNet


@dataclass(frozen=True)
class Progress:
    """Progress of a run at a report."""

    step: int  # finished iterations
    loss: float  # mean since the last report
    slices_per_s: float  # since the last report


def train(
    slices: SliceSet,
    unet_config: UNetConfig,
    config: TrainConfig,
    output: Path,
    *,
    data: Mapping[str, Any],
    init: Checkpoint | None = None,
    stop_at: int | None = None,
    record: Path | None = None,
    save_every_s: float = 120.0,
    report: Callable[[Progress], None] = lambda progress: None,
    report_every: int = 50,
) -> list[float]:
    """Train a network into the checkpoint ``output``; where it exists, resume.

    Parameters
    ----------
    slices : the training split
    data : description of the training data for the checkpoint, JSON values
    init : checkpoint whose EMA weights to start from (fine-tuning); ignored when resuming
    stop_at : total number of iterations to stop after; None for ``config.iterations``
    record : file of the losses, see :class:`anofpdm.train.loss_record.LossRecord`; None for none
    save_every_s : seconds between checkpoints
    report : called every ``report_every`` iterations and at the end

    Returns
    -------
    The loss of each iteration of this call.

    Raises
    ------
    CheckpointError
        If ``output`` has another configuration, or ``init`` another network.
    AnofpdmError
        If the batch cannot be divided among the processes.
    """
    rank, world, device = _join_processes()
    if config.batch % world:
        raise AnofpdmError(f"batch {config.batch} cannot be shared among {world} processes")
    torch.manual_seed(config.seed)
    start = UNet(unet_config)
    if init is not None:
        if init.unet != unet_config:
            raise CheckpointError("the checkpoint to start from has another network")
        start.load_state_dict(init.ema)
    # On CPUs group normalisation is slower with channels last, most of all in narrow networks.
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    unet = start.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    ema = copy.deepcopy(unet).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.lr, weight_decay=0.0)
    run = RunConfig(slices.modalities, slices.grid, unet_config, config)
    step = _resume(output, run, unet, ema, optimizer)
    loss_module: nn.Module = DenoisingLoss(unet, config.loss_weight, config.contrast).to(device)
    if world > 1:
        loss_module = DistributedDataParallel(loss_module)
    batches = Batches(slices, config, rank, world)
    last = min(config.iterations, stop_at or config.iterations)

    def save() -> None:
        if rank == 0:
            state = Checkpoint(
                unet_config,
                config,
                slices.modalities,
                slices.grid,
                step,
                unet.state_dict(),
                ema.state_dict(),
                optimizer.state_dict(),
                data,
            )
            # The losses are written first, so that none is missing at the checkpoint's step.
            if loss_record:
                loss_record.flush()
            save_checkpoint(state, output)

    loss_record = LossRecord(record, step) if record and rank == 0 else None
    losses: list[float] = []
    saved_at = reported_at = time.monotonic()
    reported = 0
    while step < last:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        # Dropout is a function of (seed, step, rank), like the batch.
        torch.manual_seed(hash((config.seed, step, rank)))
        batch = Batch(*(t.to(device) for t in vars(batches[step]).values()))
        with _autocast(config, device):
            loss = loss_module(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), config.grad_clip)
        optimizer.step()
        _update_ema(ema, unet, min(config.ema, (1 + step) / (10 + step)))
        step += 1
        losses.append(float(loss.detach()))
        if loss_record:
            loss_record.add(step, losses[-1])
        now = time.monotonic()
        if step % report_every == 0 or step == last:
            recent = losses[reported:]
            reported = len(losses)
            speed = len(recent) * config.batch / max(now - reported_at, 1e-9)
            if rank == 0:
                report(Progress(step, float(np.mean(recent)), speed))
            reported_at = now
        if now - saved_at > save_every_s:
            save()
            saved_at = now
    save()
    if world > 1:
        dist.destroy_process_group()
    return losses


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant or half a cosine down to zero at ``config.iterations``."""
    warm = min(1.0, (step + 1) / max(config.warmup, 1))
    if config.schedule == "constant":
        return config.lr * warm
    done = min(1.0, max(0, step - config.warmup) / max(1, config.iterations - config.warmup))
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * done))


def _join_processes() -> tuple[int, int, torch.device]:
    """Rank, number of processes and device, from the environment that ``torchrun`` sets."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else None
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    return rank, world, device or torch.device("cpu")


def _resume(
    path: Path, run: RunConfig, unet: UNet, ema: UNet, optimizer: torch.optim.Optimizer
) -> int:
    """Load the checkpoint if there is one; its number of finished iterations, else 0."""
    if not path.exists():
        return 0
    checkpoint = load_checkpoint(path)
    if checkpoint.config != run:
        raise CheckpointError(
            f"{path} was made with other options: {', '.join(checkpoint.config.differences(run))}"
            ": repeat them to resume, or choose another folder"
        )
    unet.load_state_dict(checkpoint.weights)
    ema.load_state_dict(checkpoint.ema)
    optimizer.load_state_dict(dict(checkpoint.optimizer))
    return checkpoint.step


def _autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    if config.autocast:
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


@torch.no_grad()
def _update_ema(ema: UNet, unet: UNet, decay: float) -> None:
    for average, parameter in zip(ema.parameters(), unet.parameters(), strict=True):
        average.lerp_(parameter, 1 - decay)
