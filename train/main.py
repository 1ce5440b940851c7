"""``anofpdm-train``: a cohort in, a checkpoint out."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any, Protocol

import click

from anofpdm.runtime.bundle.bundle import open_bundle
from anofpdm.runtime.cli.arguments import OneLineCommand, reports_errors
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.errors import AnofpdmError, CohortError
from anofpdm.runtime.util.files import write_json
from anofpdm.runtime.util.optional import require
from anofpdm.runtime.volume.grid import Grid
from anofpdm.runtime.volume.labelled_slices import INDEX, SliceSet, open_sliceset

from .options import config_options, run_config
from .run_config import RunConfig


@click.command(cls=OneLineCommand)
@click.argument("cohort", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--modalities", help="Names, with commas.  [default: flair]")
@click.option("--preset", default="light", show_default=True, help="light or reference.")
@click.option(
    "--image-size", type=click.IntRange(min=8), help="Pixels a side of the slices.  [default: 128]"
)
@click.option(
    "--pixel-mm",
    type=click.FloatRange(min=0, min_open=True),
    help="Their spacing.  [default: 1.875]",
)
@config_options
@click.option("--init", type=click.Path(path_type=Path), help="Begin with this checkpoint's EMA.")
@click.option("--stop-at", type=int, help="Leave off after this iteration; resume later.")
@click.option("--prepare-only", is_flag=True, help="Prepare slices, do not train.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Only prepare slices, for this "
              "bundle to be calibrated or evaluated on.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the configuration, do nothing.")
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
            raise AnofpdmError("--bundle says what to prepare: leave out the other options")
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
    # A checkpoint that is there already keeps its description until it is found to fit.
    if rank == 0 and not (output / "model.pt").exists():
        write_json(output / "config.json", {"cohort": cohort.name, **config.as_json()})
    if not prepare_only:
        _train(slices, config, output, cohort, init, stop_at, rank)


def _prepared(
    cohort: Path, folder: Path, modalities: tuple[str, ...], grid: Grid, seed: int, rank: int = 0
) -> SliceSet:
    """The slices of the run; the first process prepares them, the others wait."""
    from .cohort import assign_splits, read_cohort
    from .prepare import prepare

    source = {"cohort": cohort.name, "seed": seed}
    if (cohort / INDEX).is_file():
        folder, source = cohort, {}
    elif rank:
        while not (folder / INDEX).is_file():
            time.sleep(1.0)
    elif not (folder / INDEX).is_file():
        found = read_cohort(cohort, modalities, _note)
        cases = assign_splits(found, seed)
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
    from .losses import LOSSES

    split = slices.split("train")
    writer = _tensorboard(output) if rank == 0 else _Nowhere()
    started = time.monotonic()

    def report(progress: Progress) -> None:
        elapsed = time.monotonic() - started
        click.echo(
            f"iteration {progress.step}/{config.train.iterations}  loss {progress.loss:.5f}  "
            f"{progress.slices_per_s:.1f} slices/s  {elapsed:.0f} s",
            err=True,
        )
        writer.add_scalar("loss", progress.loss, progress.step)

    begun = load_checkpoint(init) if init else None
    data: dict[str, Any] = {
        "cohort": slices.source.get("cohort", cohort.name),
        "split": "train",
        "patients": len(set(split.patients)),
        "slices": len(split),
        "unhealthy_slices": int(split.unhealthy.sum()),
    }
    if begun:
        data["begun_with"] = {
            "iterations": begun.step,
            "training": dataclasses.asdict(begun.train),
            "data": dict(begun.data),
        }
    train(
        split,
        config.unet,
        config.train,
        output / "model.pt",
        data=data,
        init=begun,
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


class _Nowhere:
    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Forget it."""


def _tensorboard(output: Path) -> _Scalars:
    """A TensorBoard writer when TensorBoard is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return _Nowhere()
    writer: _Scalars = SummaryWriter(str(output / "tensorboard"))
    return writer


if __name__ == "__main__":
    main()
