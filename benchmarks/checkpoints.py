"""The learning curve: ``python benchmarks/checkpoints.py SLICES CHECKPOINT ...``

Copies of a run's ``model.pt`` that were kept on the way, compared on the val split with their EMA
weights. Which one to export is chosen by the accuracy of the decision on patients left out of its
fit and by where M_t peaks; Dice and AUPRC are there to see, not to choose by.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from judged import judged
from machine import machine, table

from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.util.files import write_json
from anofpdm.train.checkpoint import load_checkpoint
from anofpdm.train.dataset import open_sliceset


@click.command()
@click.argument("slices", type=click.Path(path_type=Path))
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--split", default="val", show_default=True)
@click.option("--every", default=2, show_default=True, help="Use every k-th slice only.")
@click.option("--json", "json_path", type=click.Path(path_type=Path))
@reports_errors
def main(
    slices: Path, checkpoints: tuple[Path, ...], split: str, every: int, json_path: Path | None
) -> None:
    labelled = open_sliceset(slices).split(split)
    rows: list[dict[str, Any]] = []
    for path in checkpoints:
        checkpoint = load_checkpoint(path)
        found = judged(checkpoint.network(), labelled, every)
        rows.append({"iterations": checkpoint.step, "before": _before(checkpoint.data), **found})
        click.echo(" | ".join(_line(rows[-1])), err=True)
    rows.sort(key=lambda row: (row["before"], row["iterations"]))
    click.echo(table(_HEAD, [_line(row) for row in rows]))
    if json_path:
        about = {"machine": machine("torch"), "split": split, "every": every}
        write_json(json_path, {**about, "rows": rows})


def _before(data: Any) -> int:
    """The iterations of the runs that a run began with."""
    begun = data.get("begun_with")
    return int(begun["iterations"]) + _before(begun["data"]) if begun else 0


_HEAD = ["iterations, before", "w", "accuracy", "AUROC", "t_e, unhealthy", "M_t largest at L",
         "Dice", "AUPRC"]  # fmt: skip


def _line(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['iterations']}, {row['before']}",
        f"{row['w']:g}",
        f"{row['accuracy']:.3f}",
        f"{row['auroc']:.3f}",
        f"{row['t_e']:.0f}",
        f"{row['at_L']:.0%}",
        f"{row['dice']:.3f}",
        f"{row['auprc']:.3f}",
    ]


if __name__ == "__main__":
    main()
