"""``anofpdm-train``: from a cohort to a checkpoint."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import click

from anofpdm.runtime.bundle.bundle import open_bundle
from anofpdm.runtime.cli.arguments import SEED, OneLineCommand, reports_errors
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.errors import AnofpdmError, CohortError
from anofpdm.runtime.util.files import write_json
from anofpdm.runtime.util.optional import require
from anofpdm.runtime.volume.grid import Grid

from .config import PRESETS, RunConfig, TrainConfig, unet_config
from .dataset import INDEX, SliceSet, open_sliceset

_HELP_PRESET = "light"  # its values are the defaults in the help
_NETWORK: tuple[tuple[str, Any, str], ...] = (
    ("--base-width", int, "Unit of the widths of the levels, in channels."),
    ("--channel-mult", str, "Width of each level in units of it, with commas."),
    ("--num-res-blocks", int, "Residual blocks a level."),
    ("--attention-resolutions", str, "Sizes of the maps with attention, with commas."),
    ("--num-heads", int, "Heads of the attention."),
    ("--dropout", float, "Dropout rate."),
    ("--patch", int, "Side of the square of pixels that becomes channels."),
    ("--prediction", click.Choice(["eps", "v", "x0"]), "Prediction of the layers."),
    (
        "--label-in",
        click.Choice(["both", "attention"]),
        "Where the label enters: attention, or the time embedding as well.",
    ),
)
_TRAINING: tuple[tuple[str, Any, str], ...] = (
    ("--iterations", int, "Training steps."),
    ("--batch", int, "Slices an iteration, over all processes."),
    ("--lr", float, "Learning rate."),
    ("--warmup", int, "Iterations of linear warm-up."),
    ("--schedule", click.Choice(["cosine", "constant"]), "Learning rate after the warm-up."),
    ("--ema", float, "Decay of the moving average of the weights."),
    ("--label-dropout", float, "Share of samples with the null label."),
    ("--contrast", float, "Weight of the contrast between labels in the loss."),
    ("--seed", SEED, "Seed of the training and of the splits."),
    ("--unhealthy-share", float, "Share of unhealthy slices in batches; -1: as in the cohort."),
    ("--focus-t", int, "Largest of the timesteps that are drawn more often."),
    ("--focus-share", float, "Share of samples from timesteps up to --focus-t only."),
    (
        "--loss-weight",
        click.Choice(["uniform", "min-snr"]),
        "Weights of the timesteps in the loss.",
    ),
    ("--strip", float, "Share of slices without the skull."),
    ("--affine", float, "Share of slices rotated, scaled and shifted."),
    ("--gain", float, "Largest relative change of contrast."),
    ("--bias", float, "Largest logarithm of a smooth bias field."),
    ("--flip/--no-flip", bool, "Random flips, left for right."),
)


def config_options(body: Callable[..., None]) -> Callable[..., None]:
    """Add an option for every field of the configurations; None where the option is not given.

    The help has the values of the preset ``light``.
    """
    network, training = unet_config(_HELP_PRESET, 1, 128), PRESETS[_HELP_PRESET][1]
    for name, kind, text in reversed(_NETWORK + _TRAINING):
        config: object = network if (name, kind, text) in _NETWORK else training
        value = getattr(config, name.split("/")[0].removeprefix("--").replace("-", "_"))
        default = ",".join(map(str, value)) if isinstance(value, tuple) else value
        if kind is bool:
            default = "flip" if value else "no-flip"
        help_text = f"{text}  [{_HELP_PRESET}: {default}]"
        body = click.option(name, type=kind, default=None, help=help_text)(body)
    return body


def run_config(
    preset: str, modalities: tuple[str, ...], grid: Grid, options: Mapping[str, Any]
) -> RunConfig:
    """The configuration of a preset, changed by the options that are not None.

    Raises
    ------
    AnofpdmError
        If there is no such preset, or a value is not possible.
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
        trained = {name: value for name, value in changes.items() if name in training}
        train = dataclasses.replace(PRESETS[preset][1], **trained)
    except ValueError as error:
        raise AnofpdmError(str(error)) from error
    return RunConfig(modalities, grid, unet, train)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        option = name.replace("_", "-")
        raise AnofpdmError(f"--{option} {text}: write numbers with commas, 1,2,2") from None


@click.command(cls=OneLineCommand)
@click.argument("cohort", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--modalities", help="Names of the channels, with commas.  [default: flair]")
@click.option(
    "--preset", default="light", show_default=True, help="Configuration: light or reference."
)
@click.option(
    "--image-size", type=click.IntRange(min=8), help="Pixels a side of the slices.  [default: 128]"
)
@click.option(
    "--pixel-mm",
    type=click.FloatRange(min=0, min_open=True),
    help="Spacing of the pixels.  [default: 1.875]",
)
@config_options
@click.option(
    "--init", type=click.Path(path_type=Path), help="Checkpoint whose EMA weights to start from."
)
@click.option("--stop-at", type=int, help="Iteration to stop after, to resume later.")
@click.option("--prepare-only", is_flag=True, help="Prepare slices, do not train.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle to prepare slices "
              "for, to calibrate or evaluate it; no training.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the configuration only.")
@click.version_option(package_name="anofpdm")
@reports_errors
def main(
    cohort: Path,
    output: Path,
    modalities: str | None,
    preset: str,
    image_size: int | None,
    pixel_mm: float | None,
    init: Path | None,
    stop_at: int | None,
    prepare_only: bool,
    bundle: Path | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train the diffusion model on COHORT, from image-level labels.

    COHORT is a folder laid out like BraTS or ATLAS v2.0, a CSV file, or a folder of prepared
    slices. The run folder receives slices/, config.json, losses.csv and model.pt; the same command
    again resumes. With torchrun, many processes train together.

    Example: anofpdm-train BraTS2021/ -o run --modalities flair
    """
    require("torch", "train")
    if bundle:
        changed = [value for value in options.values() if value is not None]
        if modalities or image_size or pixel_mm or init or changed:
            raise AnofpdmError(
                "--bundle sets the modalities and the grid: leave out the other options"
            )
        manifest = open_bundle(bundle).manifest
        _prepared(cohort, output / "slices", manifest.modalities, manifest.grid, 0)
        return
    names = tuple(name.strip() for name in (modalities or "flair").split(","))
    grid = Grid(image_size or Grid.size, pixel_mm or Grid.pixel_mm)
    config = run_config(preset, names, grid, options)
    if dry_run:
        click.echo(json.dumps(config.as_json(), indent=1))
        return
    output.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ.get("RANK", "0"))
    slices = _prepared(cohort, output / "slices", names, grid, config.train.seed, rank)
    # An existing checkpoint keeps its description: resuming checks that it fits.
    if rank == 0 and not (output / "model.pt").exists():
        write_json(output / "config.json", {"cohort": cohort.name, **config.as_json()})
    if not prepare_only:
        _train(slices, config, output, cohort, init, stop_at, rank)


def _prepared(
    cohort: Path, folder: Path, modalities: tuple[str, ...], grid: Grid, seed: int, rank: int = 0
) -> SliceSet:
    """The slices of the run: the first process prepares them, the others wait for it."""
    from .cohort import assign_splits, read_cohort
    from .prepare import prepare

    source = {"cohort": cohort.name, "seed": seed}
    if (cohort / INDEX).is_file():
        folder, source = cohort, {}
    elif rank:
        while not (folder / INDEX).is_file():
            time.sleep(1.0)
    elif not (folder / INDEX).is_file():
        cases = assign_splits(read_cohort(cohort, modalities, _note), seed)
        prepare(cases, modalities, grid, folder, source, ProgressLine("scans"))
    slices = open_sliceset(folder)
    if source and slices.source != source:
        raise CohortError(
            f"{folder} was prepared from {slices.source.get('cohort')} with seed "
            f"{slices.source.get('seed')}: name another output folder"
        )
    if (slices.modalities, slices.grid) != (modalities, grid):
        raise CohortError(
            f"{folder} was prepared for {', '.join(slices.modalities)} on another grid or in "
            "another order: name another output folder"
        )
    return slices


def _train(
    slices: SliceSet,
    config: RunConfig,
    output: Path,
    cohort: Path,
    init: Path | None,
    stop_at: int | None,
    rank: int,
) -> None:
    from .checkpoint import load_checkpoint
    from .loop import Progress, train
    from .loss_record import LOSSES

    split = slices.split("train")
    writer = _tensorboard(output) if rank == 0 else _NoScalars()
    started = time.monotonic()

    def report(progress: Progress) -> None:
        elapsed = time.monotonic() - started
        click.echo(
            f"iteration {progress.step}/{config.train.iterations}  loss {progress.loss:.5f}  "
            f"{progress.slices_per_s:.1f} slices/s  {elapsed:.0f} s",
            err=True,
        )
        writer.add_scalar("loss", progress.loss, progress.step)

    initial = load_checkpoint(init) if init else None
    data: dict[str, Any] = {
        "cohort": slices.source.get("cohort", cohort.name),
        "split": "train",
        "patients": len(set(split.patients)),
        "slices": len(split),
        "unhealthy_slices": int(split.unhealthy.sum()),
    }
    if initial:
        data["begun_with"] = {
            "iterations": initial.step,
            "training": dataclasses.asdict(initial.train),
            "data": dict(initial.data),
        }
    train(
        split,
        config.unet,
        config.train,
        output / "model.pt",
        data=data,
        init=initial,
        stop_at=stop_at,
        record=output / LOSSES,
        report=report,
    )
    if rank == 0:
        click.echo(f"checkpoint in {output / 'model.pt'}")


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


class _Scalars(Protocol):
    def add_scalar(self, tag: str, value: float, step: int) -> None: ...


class _NoScalars:
    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Do nothing."""


def _tensorboard(output: Path) -> _Scalars:
    """A TensorBoard writer if TensorBoard is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return _NoScalars()
    writer: _Scalars = SummaryWriter(str(output / "tensorboard"))
    return writer


if __name__ == "__main__":
    main()
