"""Does the training command give the same losses again?

``python benchmarks/same_losses.py RUN``

runs the first iterations of a run folder again, with its config.json, in a temporary folder, and
compares them with its losses.csv. They are equal to the last digit on the same machine with the
same versions and threads (OMP_NUM_THREADS); exit code 1 when they are further apart than rounding.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import click
import torch

from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.errors import AnofpdmError, CheckpointError
from anofpdm.train.checkpoint import load_checkpoint
from anofpdm.train.config import RunConfig
from anofpdm.train.dataset import open_sliceset
from anofpdm.train.loop import train
from anofpdm.train.loss_record import LOSSES, read_losses

_ROUNDING = 1e-6


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--iterations", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--slices", type=click.Path(path_type=Path), help="[default: RUN/slices]")
@click.option("--init", type=click.Path(path_type=Path), help="What the run began with, if it did.")
@reports_errors
def main(run: Path, iterations: int, slices: Path | None, init: Path | None) -> None:
    recorded = read_losses(run / LOSSES)
    config, begun_with = _config(run / "config.json"), load_checkpoint(init) if init else None
    if "begun_with" in load_checkpoint(run / "model.pt").data and not begun_with:
        raise AnofpdmError(f"{run} began with another run's weights: name them with --init")
    iterations = min(iterations, config.train.iterations)
    missing = [i for i in range(1, iterations + 1) if i not in recorded]
    if missing:
        raise AnofpdmError(
            f"{run / LOSSES} lacks iteration {missing[0]}: compare fewer with --iterations"
        )
    labelled = open_sliceset(slices or run / "slices")
    if (labelled.modalities, labelled.grid) != (config.modalities, config.grid):
        raise AnofpdmError(f"{run} was trained on other slices: name them with --slices")
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / LOSSES
        train(
            labelled.split("train"),
            config.unet,
            config.train,
            Path(folder) / "model.pt",
            data={},
            init=begun_with,
            stop_at=iterations,
            record=again,
        )
        losses = read_losses(again)
    apart = [abs(losses[i] - recorded[i]) / max(abs(recorded[i]), 1e-12) for i in losses]
    where = apart.index(max(apart)) + 1
    equal = sum(losses[i] == recorded[i] for i in losses)
    click.echo(
        f"{equal} of {iterations} losses are equal; largest relative difference {max(apart):.1e}, "
        f"at iteration {where} ({torch.get_num_threads()} threads)"
    )
    sys.exit(0 if max(apart) <= _ROUNDING else 1)


def _config(path: Path) -> RunConfig:
    try:
        return RunConfig.parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a run's configuration ({error})") from error


if __name__ == "__main__":
    main()
