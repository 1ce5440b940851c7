"""What matters in training, found with a small budget:

``python benchmarks/ablation.py SLICES -o FOLDER --iterations 1200``

Each variant is the base recipe with one change, trained on the train split, on slices with fewer
pixels, and evaluated with its EMA weights on every second slice of the val split, where w and the
thresholds are chosen too: figures to compare with each other, not with those of a test split. The
same command again goes on where it was left off. With ``--init`` the variants are trained further
from one checkpoint, on the slices as they are: what a short training can still tell apart; those
that need another network are left out. Dice is that of unhealthy slices, each segmented
whatever the decision; seconds are of one core.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from judged import W, judged
from machine import machine, table
from variants import VARIANTS, Variant

from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.errors import AnofpdmError
from anofpdm.runtime.util.files import write_json
from anofpdm.runtime.volume.grid import Grid
from anofpdm.train.checkpoint import Checkpoint, load_checkpoint
from anofpdm.train.dataset import INDEX, SliceSet, open_sliceset, writing
from anofpdm.train.loop import train


@click.command()
@click.argument("slices", type=click.Path(path_type=Path))
@click.option("--slices-t1", type=click.Path(path_type=Path), help="Prepared with --modalities "
              "flair,t1,t1ce: for the variants that need them.")  # fmt: skip
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("--init", type=click.Path(path_type=Path), help="Train this checkpoint further.")
@click.option("--iterations", type=click.IntRange(min=1), default=1200, show_default=True)
@click.option("--image-size", "size", type=click.IntRange(min=16), default=64, show_default=True,
              help="Pixels a side, averaged from the slices.")  # fmt: skip
@click.option("--only", multiple=True, type=click.Choice(list(VARIANTS)), help="Only these.")
@click.option("--w", "w", multiple=True, type=float, help="Candidate guidance strengths: one, for "
              "variants to be compared at the same.  [default: those of judged.py]")  # fmt: skip
@click.option("--every", default=2, show_default=True, help="Evaluate on every k-th slice.")
@click.option("--json", "json_path", type=click.Path(path_type=Path))
@reports_errors
def main(
    slices: Path,
    slices_t1: Path | None,
    output: Path,
    init: Path | None,
    iterations: int,
    size: int,
    only: tuple[str, ...],
    w: tuple[float, ...],
    every: int,
    json_path: Path | None,
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    begun = load_checkpoint(init) if init else None
    if begun:
        sets, size = {"flair": open_sliceset(slices)}, begun.grid.size
    else:
        sets = {"flair": _coarse(slices, output / "slices/flair", 1, size)}
    if slices_t1 and not begun:
        sets["t1"] = _coarse(slices_t1, output / "slices/t1", 3, size)
        sets["t1-flair"] = _coarse(slices_t1, output / "slices/t1-flair", 1, size)
    names = [name for name in only or VARIANTS if VARIANTS[name].slices in sets]
    if begun:
        names = [name for name in names if not VARIANTS[name].network]
    rows: list[dict[str, Any]] = []
    for name in names:
        variant = VARIANTS[name]
        folder = output / name.replace(" ", "-")
        try:
            rows.append({"variant": name, **_row(variant, sets[variant.slices], folder, iterations,
                                                 every, w or W, begun)})  # fmt: skip
        except AnofpdmError as error:
            click.echo(f"note: {name}: {error}", err=True)
            continue
        click.echo(" | ".join(_line(rows[-1])), err=True)
        about = {"machine": machine("torch"), "iterations": iterations, "every": every,
                 "image_size": size, "w": w or W,
                 "begun_with": init.name if init else None}  # fmt: skip
        write_json(json_path or output / "ablation.json", {**about, "rows": rows})
    click.echo(table(_HEAD, [_line(row) for row in rows]))


def _coarse(source: Path, folder: Path, channels: int, size: int) -> SliceSet:
    """The first channels of prepared slices, with ``size`` pixels a side."""
    slices = open_sliceset(source)
    coarse = slices.grid.size // size
    if coarse * size != slices.grid.size or len(slices.modalities) < channels:
        raise AnofpdmError(
            f"{source} has {', '.join(slices.modalities)} at {slices.grid.size} pixels a side: "
            f"prepare flair,t1,t1ce (or flair alone) at a multiple of {size}"
        )
    if not (folder / INDEX).is_file():
        grid = Grid(**{**asdict(slices.grid), "size": size,
                       "pixel_mm": coarse * slices.grid.pixel_mm})  # fmt: skip
        names = slices.modalities[:channels]
        with writing(folder, names, grid, slices.source) as writer:
            for i, record in enumerate(slices.records):
                x0, mask = (_means(one, coarse) for one in (slices.x0(i), slices.mask(i)))
                writer.add(record, x0[:channels], mask >= 0.5)
    made = open_sliceset(folder)
    if made.grid.size != size:
        raise AnofpdmError(f"{folder} has {made.grid.size} pixels a side: name another --output")
    return made


def _means(image: Any, coarse: int) -> Any:
    """(..., H, W) -> (..., H / coarse, W / coarse), means of the pixels."""
    *rest, height, width = image.shape
    blocks = image.reshape(*rest, height // coarse, coarse, width // coarse, coarse)
    return blocks.mean(axis=(-3, -1), dtype=np.float32)


def _row(
    variant: Variant,
    slices: SliceSet,
    folder: Path,
    iterations: int,
    every: int,
    w: tuple[float, ...],
    begun: Checkpoint | None,
) -> dict[str, Any]:
    """Train and evaluate, unless one or both are done."""
    configs = variant.configs(len(slices.modalities), slices.grid.size, iterations)
    if begun:
        configs = variant.further(begun.unet, iterations) or configs
    unet, training = configs
    asked = json.loads(
        json.dumps(
            {
                "unet": asdict(unet),
                "train": asdict(training),
                "source": slices.source,
                "begun_with": dict(begun.data) | {"iterations": begun.step} if begun else None,
            }
        )
    )
    done, how = folder / "row.json", {"every": every, "tried": list(w)}
    row: dict[str, Any] = {}
    if done.is_file():
        row = json.loads(done.read_text(encoding="utf-8"))
    trained = {name: row.get(name) for name in asked} == asked
    if trained and {name: row.get(name) for name in how} == how:
        return row
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "model.pt"
    if not trained:
        began = time.process_time()
        losses = train(slices.split("train"), unet, training, checkpoint, data={}, init=begun)
        # Of the whole run, also where a part of it was run before.
        per_iteration = (time.process_time() - began) / len(losses) if losses else None
        row = {
            "seconds": None if per_iteration is None else per_iteration * iterations,
            "loss": float(np.mean(losses[-100:])) if losses else None,
        }
    network = load_checkpoint(checkpoint).network()
    row = {
        **row,
        "parameters": sum(p.numel() for p in network.parameters()),
        **how,
        **asked,
        **judged(network, slices.split("val"), every, w),
    }
    write_json(done, row)
    return row


_HEAD = ["variant", "iterations", "seconds", "M parameters", "w", "accuracy", "AUROC",
         "M_t largest at L", "Dice", "AUPRC"]  # fmt: skip


def _line(row: dict[str, Any]) -> list[str]:
    return [
        row["variant"],
        str(row["train"]["iterations"]),
        "not measured" if row["seconds"] is None else f"{row['seconds']:.0f}",
        f"{row['parameters'] / 1e6:.2f}",
        f"{row['w']:g}",
        f"{row['accuracy']:.3f}",
        f"{row['auroc']:.3f}",
        f"{row['at_L']:.0%}",
        f"{row['dice']:.3f}",
        f"{row['auprc']:.3f}",
    ]


if __name__ == "__main__":
    main()
