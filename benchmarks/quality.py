"""The paper's figures 2 and 5 for a bundle, on slices whose lesions were drawn:

``python benchmarks/quality.py SLICES --bundle BUNDLE -o FOLDER``

Writes each panel's data (``figure2a.csv`` to ``figure5d.csv``) and two pictures, and prints what
one quotes of them. Figure 2: what the forward process says about healthy and unhealthy slices.
Figure 5, the ablations: Dice and AUPRC of unhealthy slices, each segmented whatever the decision.
"""

from __future__ import annotations

from pathlib import Path

import click
from machine import table
from panels import Figures, Panel, figures
from plots import draw

from anofpdm.calibrate.labelled import fitting
from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.cli.arguments import reports_errors
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.errors import OutputError
from anofpdm.runtime.util.files import whole_file
from anofpdm.train.dataset import open_sliceset


@click.command()
@click.argument("slices", type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), default=DEFAULT)
@click.option("--split", default="test", show_default=True)
@click.option("--preset", help="One of the bundle's calibrations.  [default: the bundle's]")
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True,
              help="Use every k-th slice only.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), required=True)
@reports_errors
def main(
    slices: Path,
    bundle: Path,
    split: str,
    preset: str | None,
    every: int,
    threads: int | None,
    folder: Path,
) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}: name a folder") from error
    opened = open_bundle(bundle)
    labelled = fitting(open_sliceset(slices), opened).split(split)
    labelled = labelled.take(range(0, len(labelled), every))
    denoiser = OnnxDenoiser(opened.network, threads)
    found = figures(opened, denoiser, labelled, preset, ProgressLine("slices"))
    for name, panel in found.panels.items():
        with whole_file(folder / f"figure{name}.csv") as beside:
            beside.write_text(panel.csv(), encoding="utf-8")
    draw(found, folder)
    patients = len(set(labelled.patients))
    click.echo(
        f"{found.numbers['slices']} slices of {patients} patients of the {split} split, "
        f"{found.numbers['unhealthy']} unhealthy; preset {preset or opened.default} of "
        f"{opened.manifest.name}\n"
    )
    click.echo(summary(found))


def summary(found: Figures) -> str:
    """A Markdown table of what one quotes, the best of each ablation among it."""
    n, panels = found.numbers, found.panels
    rows = [
        ["2a", "mean M_t is largest at t: healthy, unhealthy",
         f"{n['healthy_peak_t']}, {n['unhealthy_peak_t']}"],
        ["2a", "median t_e: healthy, unhealthy", f"{n['healthy_t_e']:g}, {n['unhealthy_t_e']:g}"],
        ["2a", f"t_e is the last timestep, {n['L']}, on: healthy, unhealthy",
         f"{n['healthy_t_e_last']:.0%}, {n['unhealthy_t_e_last']:.0%}"],
        ["2c", "S_t in the lesion over the rest of the head, at t_e", f"{n['ratio_at_t_e']:.2f}"],
        ["2c", "largest mean of it, at which multiple of t_e",
         f"{n['ratio_peak']:.2f}, {n['ratio_peak_t_over_t_e']:g}"],
        ["2d", "Pearson's r of max M_t and lesion area", f"{n['r']:.2f}"],
        ["5", "dynamic selection: Dice, AUPRC", f"{n['dice']:.3f}, {n['auprc']:.3f}"],
        ["5a", "best w: Dice", _best(panels["5a"])],
        ["5b", "best multiple of t_e: Dice", _best(panels["5b"])],
        ["5c", "best fixed threshold: Dice", _best(panels["5c"])],
        *(
            ["5d", f"{sub_map}, {kind}: Dice, AUPRC", f"{dice:.3f}, {auprc:.3f}"]
            for sub_map, kind, dice, auprc in panels["5d"].rows
        ),
    ]  # fmt: skip
    return table(["figure", "what", "value"], rows)


def _best(panel: Panel) -> str:
    row = panel.rows[int(panel.column("dice").argmax())]
    return f"{row[0]:.3g}: {row[panel.head.index('dice')]:.3f}"


if __name__ == "__main__":
    main()
