"""``anofpdm-evaluate``: how good a bundle is on labelled slices."""

from __future__ import annotations

from pathlib import Path

import click

from anofpdm.runtime.bundle.bundle import write_card_section
from anofpdm.runtime.bundle.options import Setup
from anofpdm.runtime.cli.arguments import (
    OneLineCommand,
    bundle_option,
    device_option,
    reports_errors,
    seed_option,
    setup_options,
    slots_option,
    threads_option,
)
from anofpdm.runtime.cli.console import ProgressLine, show_device
from anofpdm.runtime.errors import AnofpdmError
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import writable_folder, write_json
from anofpdm.train.dataset import open_sliceset

from .evaluation import evaluate
from .labelled import fitting

_HEADING = "## Figures"


@click.command(cls=OneLineCommand)
@click.argument("slices", type=click.Path(path_type=Path))
@bundle_option
@click.option("--split", default="test", show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write figures here.")
@click.option("--add-to-card", is_flag=True, help="Put the table into the bundle's model card.")
@setup_options
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
    setup: Setup,
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
        bundle, setup=setup, device=device, threads=threads, slots=slots, seed=seed
    )
    labelled = fitting(open_sliceset(slices), segmenter.bundle).split(split)
    with segmenter:
        evaluation = evaluate(segmenter, labelled, ProgressLine("slices"))
    show_device(device, segmenter.backend)
    if json_path:
        settings = {
            "bundle": segmenter.bundle.manifest.name,
            "split": split,
            "seed": seed,
            "device": segmenter.backend.device,
            **segmenter.setup.as_json(),
        }
        write_json(json_path, {**settings, **evaluation.as_json()})
    if add_to_card:
        text = f" on the {split} split\n\n{evaluation.table()}"
        write_card_section(segmenter.bundle, _HEADING, text)
    click.echo(evaluation.table())
    if evaluation.unlike:
        click.echo(
            f"unlike the volumes of the calibration: {', '.join(evaluation.unlike)}", err=True
        )
    for line in segmenter.setup.calibration.warnings:
        click.echo(f"warning of the calibration: {line}", err=True)
