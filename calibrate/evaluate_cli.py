"""``anofpdm-evaluate``: metrics of a bundle on slices with reference masks."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from anofpdm.export.bundle_update import write_card_section
from anofpdm.runtime.bundle.options import Options
from anofpdm.runtime.cli.arguments import (
    OneLineCommand,
    bundle_option,
    device_option,
    preset_option,
    reports_errors,
    seed_option,
    slots_option,
    threads_option,
)
from anofpdm.runtime.cli.console import ProgressLine, print_device
from anofpdm.runtime.errors import AnofpdmError
from anofpdm.runtime.method.anomaly_map import ANOMALY_MAPS, SUB_MAPS
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import writable_folder, write_json
from anofpdm.train.dataset import open_sliceset

from .evaluation import evaluate

_HEADING = "## Figures"
_OPTIONS = (
    preset_option,
    click.option("--anomaly-map", type=click.Choice(ANOMALY_MAPS), help="Anomaly map: the mean "
                 "of the maps up to t_e, or the last of them.  [default: the calibration's]"),
    click.option("--early-stop/--no-early-stop", default=None, help="Stop a slice after the peak "
                 "of M_t.  [default: where the calibration calls it safe]"),
    click.option("--w", type=float, help="Ablation: another calibrated guidance strength."),
    click.option("--sub-map", type=click.Choice(SUB_MAPS), default="residual", show_default=True,
                 help="Ablation: sub-anomaly map, the guided prediction's squared error or the "
                 "squared difference of the predictions."),
    click.option("--t-e-ratio", type=float, default=1.0, show_default=True,
                 help="Ablation: multiple of t_e at which the map is taken."),
    click.option("--threshold", "Q", type=float, help="Ablation: threshold of the anomaly map."),
)  # fmt: skip


def plan_options(body: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a plan; the command receives them as ``options``, an :class:`Options`."""

    @functools.wraps(body)
    def wrapped(**arguments: Any) -> None:
        values = {name: arguments.pop(name) for name in Options.__dataclass_fields__}
        body(options=Options(**values), **arguments)

    decorated: Callable[..., None] = wrapped
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


@click.command(cls=OneLineCommand)
@click.argument("slices", type=click.Path(path_type=Path))
@bundle_option
@click.option("--split", default="test", show_default=True, help="Split of the slices.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="JSON file of the metrics."
)
@click.option("--add-to-card", is_flag=True, help="Write the table into the bundle's model card.")
@plan_options
@seed_option
@device_option
@slots_option
@threads_option
@click.version_option(package_name="anofpdm")
@reports_errors
def main(
    slices: Path,
    bundle: Path | None,
    split: str,
    json_path: Path | None,
    add_to_card: bool,
    options: Options,
    seed: int,
    device: str,
    slots: int | None,
    threads: int | None,
) -> None:
    """Compare a bundle's masks with reference masks: Dice, IoU, AUPRC, accuracy.

    SLICES is a folder of prepared slices with masks (anofpdm-train writes one).

    Example: anofpdm-evaluate run/slices --bundle model.anofpdm --json figures.json
    """
    if json_path:
        writable_folder(json_path)
    if add_to_card and bundle is None:
        raise AnofpdmError("--add-to-card writes into a bundle: name it with --bundle")
    segmenter = Segmenter.load(
        bundle, options=options, device=device, threads=threads, slots=slots, seed=seed
    )
    manifest = segmenter.bundle.manifest
    labelled = open_sliceset(slices).require(manifest.modalities, manifest.grid).split(split)
    with segmenter:
        evaluation = evaluate(segmenter, labelled, ProgressLine("slices"))
    print_device(segmenter.backend)
    if json_path:
        settings = {
            "bundle": manifest.name,
            "split": split,
            "seed": seed,
            "device": segmenter.backend.device,
            **segmenter.plan.as_json(),
        }
        write_json(json_path, {**settings, **evaluation.as_json()})
    if add_to_card:
        text = f" on the {split} split\n\n{evaluation.table()}"
        write_card_section(segmenter.bundle, _HEADING, text)
    click.echo(evaluation.table())
    if evaluation.implausible:
        names = ", ".join(evaluation.implausible)
        click.echo(f"unlike the volumes of the calibration: {names}", err=True)
    for line in segmenter.plan.calibration.warnings:
        click.echo(f"warning of the calibration: {line}", err=True)
