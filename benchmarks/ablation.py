"""Training recipes compared with a small budget:

``python benchmarks/ablation.py SLICES -o FOLDER --iterations 1200``

Each variant is the base recipe with one change (``--change contrast=0.02``), trained on the train
split and evaluated with its EMA weights on every second slice of the val split, where w and the
thresholds are chosen too. The same command resumes. From scratch, take slices of few pixels
(``anofpdm-train --image-size 64 --pixel-mm 3.75 --prepare-only``); with ``--init`` a checkpoint is
trained further, without changes of the network. ``--checkpoint`` evaluates copies of a run's
``model.pt`` as well: its learning curve.
"""

import json
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from assess import W, assess
from common import PATH, machine, table

from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.errors import OptionsError
from anofpdm.runtime.util.files import write_json
from anofpdm.train.checkpoint import Checkpoint, load_checkpoint
from anofpdm.train.config import PRESETS, TrainConfig, UNetConfig, unet_config
from anofpdm.train.dataset import SliceSet, open_sliceset
from anofpdm.train.loop import train

BASE = "base"
CHANGES = (BASE, "contrast=0", "contrast=0.02", "seed=1", "seed=2", "label_dropout=0.2", "gain=0.4",
           "loss_weight=min-snr", "bias=0.3", "channel_mult=[1, 1, 1]", "prediction=eps",
           "prediction=x0", "label_in=attention", "unhealthy_share=-1", "ema=0.99")  # fmt: skip
_NETWORK = {field.name for field in fields(UNetConfig)}
_HEAD = ["variant", "iterations", "seconds", "M parameters", "w", "accuracy", "AUROC",
         "M_t largest at L", "Dice", "AUPRC"]  # fmt: skip


def parse(change: str) -> dict[str, Any]:
    """What a change such as ``contrast=0.02`` sets; nothing for the base."""
    name, _, text = change.partition("=")
    if change != BASE and name not in {*_NETWORK, *(field.name for field in fields(TrainConfig))}:
        raise OptionsError(f"{change} changes no field of UNetConfig or TrainConfig")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return {} if change == BASE else {name: tuple(value) if isinstance(value, list) else value}


def configs(
    change: dict[str, Any], slices: SliceSet, iterations: int, begun: Checkpoint | None
) -> tuple[UNetConfig, TrainConfig]:
    """A network half as wide as the preset ``light``, or that of a checkpoint, and its training.
    Short runs are not told apart by a decay of the EMA above (1 + step) / (10 + step)."""
    network, training = {"base_width": 32}, {"iterations": iterations, "contrast": 0.005}
    training |= {"warmup": min(200, iterations // 10)}
    if begun:
        training |= {"batch": 24, "lr": 3e-4, "warmup": 20, "ema": 0.98}
    for name, value in change.items():
        (network if name in _NETWORK else training)[name] = value
    light = replace(PRESETS["light"][1], **training)
    size = len(slices.modalities), slices.grid.size
    return (begun.unet if begun else unet_config("light", *size, **network)), light


@click.command()
@click.argument("slices", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="Folder.")
@click.option("--init", type=PATH, help="Train this checkpoint further.")
@click.option("--iterations", type=click.IntRange(min=1), default=1200, show_default=True)
@click.option("--change", "changes", multiple=True, default=CHANGES, help="NAME=VALUE, or base.")
@click.option("--checkpoint", "checkpoints", multiple=True, type=PATH, help="Evaluate it too.")
@click.option("--w", multiple=True, type=float, help="Candidate guidance strengths: a single one, "
              "to compare variants at the same.  [default: those of assess.py]")  # fmt: skip
@click.option("--every", default=2, show_default=True, help="Evaluate on every k-th slice.")
@click.option("--json", "json_path", type=PATH)
@reports_errors
def main(slices, output, init, iterations, changes, checkpoints, w, every, json_path):
    labelled, begun = open_sliceset(slices), load_checkpoint(init) if init else None
    parsed = {change: parse(change) for change in changes}
    if begun:
        parsed = {change: to for change, to in parsed.items() if not to.keys() & _NETWORK}
    about = {"machine": machine("torch"), "iterations": iterations, "every": every,
             "image_size": labelled.grid.size, "w": w or W,
             "begun_with": init.name if init else None}  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for path in checkpoints:
        checkpoint = load_checkpoint(path)
        quality = assess(checkpoint.network(), labelled.split("val"), every, w or W)
        steps = {"iterations": checkpoint.step}
        rows.append({"variant": path.stem, "train": steps, "seconds": None, **quality})
    for change, to in parsed.items():
        unet, training = configs(to, labelled, iterations, begun)
        folder = output / change.replace(" ", "")
        row = _row(unet, training, labelled, folder, every, w or W, begun)
        rows.append({"variant": change, **row})
        click.echo(" | ".join(_line(rows[-1])), err=True)
        write_json(json_path or output / "ablation.json", {**about, "rows": rows})
    click.echo(table(_HEAD, [_line(row) for row in rows]))


def _row(
    unet: UNetConfig, training: TrainConfig, slices: SliceSet, folder: Path, every: int, w: Any,
    begun: Checkpoint | None,
) -> dict[str, Any]:  # fmt: skip
    """Train and evaluate, unless one or both are done."""
    before = dict(begun.data) | {"iterations": begun.step} if begun else None
    recipe = {"unet": asdict(unet), "train": asdict(training), "source": slices.source,
              "begun_with": before}  # fmt: skip
    recipe, evaluation = json.loads(json.dumps(recipe)), {"every": every, "tried": list(w)}
    file, checkpoint, row = folder / "row.json", folder / "model.pt", {}
    if file.is_file():
        row = json.loads(file.read_text(encoding="utf-8"))
    if row.items() >= (recipe | evaluation).items():
        return row
    folder.mkdir(parents=True, exist_ok=True)
    if not row.items() >= recipe.items():
        began = time.process_time()
        losses = train(slices.split("train"), unet, training, checkpoint, data={}, init=begun)
        # Of the whole run, also where a part of it was run before.
        each = (time.process_time() - began) / len(losses) if losses else None
        row = {"seconds": each and each * training.iterations,
               "loss": float(np.mean(losses[-100:])) if losses else None}  # fmt: skip
    quality = assess(load_checkpoint(checkpoint).network(), slices.split("val"), every, w)
    row |= {**evaluation, **recipe, **quality}
    write_json(file, row)
    return row


def _line(row: dict[str, Any]) -> list[str]:
    return [
        row["variant"], str(row["train"]["iterations"]),
        "not measured" if row["seconds"] is None else f"{row['seconds']:.0f}",
        f"{row['parameters'] / 1e6:.2f}", f"{row['w']:g}", f"{row['accuracy']:.3f}",
        f"{row['auroc']:.3f}", f"{row['at_L']:.0%}", f"{row['dice']:.3f}", f"{row['auprc']:.3f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
