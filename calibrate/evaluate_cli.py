"""``anofpdm-evaluate``: how good a bundle is on labelled slices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from anofpdm.runtime.bundle.bundle import write_card_section
from anofpdm.runtime.bundle.options import PRECISIONS, Options
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
from anofpdm.runtime.method.process import ENCODINGS
from anofpdm.runtime.method.schedule import SPACINGS
from anofpdm.runtime.segmenter import Segmenter
from anofpdm.runtime.util.files import writable_folder, write_json
from anofpdm.train.dataset import open_sliceset

from .evaluation import evaluate
from .labelled import fitting

_HEADING = "## Figures"


_OPTIONS = (
    preset_option,
    click.option("--encoding", type=click.Choice(ENCODINGS), help="Needs a calibration for it."),
    click.option("--length", "L", type=click.IntRange(min=1), help="L; needs a calibration."),
    click.option("--stride", type=click.IntRange(min=1), help="Needs a calibration for it."),
    click.option("--spacing", type=click.Choice(SPACINGS), help="Needs a calibration for it."),
    click.option("--precision", type=click.Choice(PRECISIONS), help="bf16: faster on CPUs that "
                 "have it; needs a calibration.  [default: the preset's]"),
    click.option("--anomaly-map", type=click.Choice(ANOMALY_MAPS), help="Mean of the maps up to "
                 "t_e, or the one at t_e.  [default: the calibration's]"),
    click.option("--early-stop/--no-early-stop", default=None, help="Leave a slice when its peak "
                 "is certain.  [default: where that was found safe]"),
    click.option("--w", type=float, help="Ablation: a guidance strength that was calibrated."),
    click.option("--sub-map", type=click.Choice(SUB_MAPS), default="residual", show_default=True,
                 help="Ablation: what maps are made of."),
    click.option("--t-e-ratio", type=float, default=1.0, show_default=True,
                 help="Ablation: take the map at this multiple of t_e."),
    click.option("--threshold", "Q", type=float, help="Ablation: cut the map here."),
)  # fmt: skip


def plan_options(body: Callable[..., None]) -> Callable[..., None]:
    """Options that make a :class:`Options`, which the command receives as ``options``."""

    @functools.wraps(body)
    def wrapped(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in Options.__dataclass_fields__}
        body(options=Options(**given), **arguments)

    decorated: Callable[..., None] = wrapped
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


@click.command(cls=OneLineCommand)
@click.argument("slices", type=click.Path(path_type=Path))
@bundle_option
@click.option("--split", default="test", show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write figures here.")
@click.option("--add-to-card", is_flag=True, help="Put the table into the bundle's model card.")
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
    labelled = fitting(open_sliceset(slices), segmenter.bundle).split(split)
    with segmenter:
        evaluation = evaluate(segmenter, labelled, ProgressLine("slices"))
    print_device(segmenter.backend)
    if json_path:
        settings = {
            "bundle": segmenter.bundle.manifest.name,
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
    if evaluation.unlike:
        click.echo(
            f"unlike the volumes of the calibration: {', '.join(evaluation.unlike)}", err=True
        )
    for line in segmenter.plan.calibration.warnings:
        click.echo(f"warning of the calibration: {line}", err=True)
