"""The paper's figures 2 and 5 for a bundle, on slices whose lesions were drawn:

``python benchmarks/quality.py SLICES --bundle BUNDLE -o FOLDER``

Writes each panel's data (``figure2a.csv`` to ``figure5d.csv``) and two pictures. Figure 2: the
forward process on healthy and unhealthy slices. Figure 5, the ablations: Dice and AUPRC of
unhealthy slices, each segmented whatever the decision.
"""

import click
from common import PATH, open_split, table
from panels import Figures, Panel, figures
from plots import draw

from anofpdm.runtime.backends.cpu.onnxruntime import OnnxDenoiser
from anofpdm.runtime.bundle.bundle import DEFAULT, open_bundle
from anofpdm.runtime.cli.arguments import reports_errors, threads_option
from anofpdm.runtime.cli.console import ProgressLine
from anofpdm.runtime.util.files import whole_file


@click.command()
@click.argument("slices", type=PATH)
@click.option("--bundle", type=PATH, default=DEFAULT)
@click.option("--split", default="test", show_default=True)
@click.option("--preset", help="One of the bundle's calibrations.  [default: the bundle's]")
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True,
              help="Use every k-th slice only.")  # fmt: skip
@threads_option
@click.option("-o", "--output", "folder", type=PATH, required=True)
@reports_errors
def main(slices, bundle, split, preset, every, threads, folder):
    folder.mkdir(exist_ok=True)
    bundle = open_bundle(bundle)
    labelled = open_split(slices, bundle, split, every)
    denoiser = OnnxDenoiser(bundle.network, threads)
    result = figures(bundle, denoiser, labelled, preset, ProgressLine("slices"))
    for name, panel in result.panels.items():
        with whole_file(folder / f"figure{name}.csv") as temporary:
            temporary.write_text(panel.csv(), encoding="utf-8")
    draw(result, folder)
    patients = len(set(labelled.patients))
    click.echo(
        f"{result.numbers['slices']} slices of {patients} patients of the {split} split, "
        f"{result.numbers['unhealthy']} unhealthy; preset {preset or bundle.default} of "
        f"{bundle.manifest.name}\n\n{summary(result)}"
    )


def summary(result: Figures) -> str:
    """A Markdown table of the figures quoted, the best of each ablation among them."""
    n, panels = result.numbers, result.panels
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
