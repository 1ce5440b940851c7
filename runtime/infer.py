"""``anofpdm-infer``: a volume in, a mask out."""

from __future__ import annotations

from pathlib import Path

import click

from .bundle import DEFAULT, open_bundle
from .command import (
    ProgressLine,
    bundle_option,
    device_option,
    reports_errors,
    seed_option,
    setup_options,
    show_device,
    slots_option,
    threads_option,
)
from .errors import OutputError, VolumeError
from .files import whole_file, writable_folder
from .inputs import find_modalities
from .segmenter import Segmenter
from .setup import Setup
from .trace import write_trace
from .volume import check_output, load_image, save_image

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("volumes", nargs=-1, type=_FILE)
@click.option("-o", "--output", required=True, type=_FILE, help="The mask.")
@click.option("--flair", type=_FILE, help="The FLAIR volume, instead of VOLUMES.")
@click.option("--t1", type=_FILE, help="Likewise.")
@click.option("--t1ce", type=_FILE, help="Likewise.")
@click.option("--t2", type=_FILE, help="Likewise.")
@click.option("--modality", "others", multiple=True, metavar="NAME=FILE", help="Any other.")
@bundle_option
@click.option(
    "--every-slice",
    is_flag=True,
    help="Segment slices that are found healthy, too: marks something on every slice.",
)
@click.option("--trace", type=_FILE, help="Write the curves and decisions of every slice (JSON).")
@setup_options
@seed_option
@device_option
@slots_option
@threads_option
@click.version_option(package_name="anofpdm")
@reports_errors
def main(
    volumes: tuple[Path, ...],
    output: Path,
    flair: Path | None,
    t1: Path | None,
    t1ce: Path | None,
    t2: Path | None,
    others: tuple[str, ...],
    bundle: Path | None,
    every_slice: bool,
    trace: Path | None,
    setup: Setup,
    seed: int,
    device: str,
    slots: int | None,
    threads: int | None,
) -> None:
    """Segment anomalies in brain MRI.

    VOLUMES is one NIfTI file a modality in the order of the bundle, one 4-D file, or the folder of
    a BraTS case. The mask (0 or 1) has the first volume's grid. For research, not for diagnosis.

    Example: anofpdm-infer flair.nii.gz -o mask.nii.gz
    """
    named = {"flair": flair, "t1": t1, "t1ce": t1ce, "t2": t2}
    opened = open_bundle(bundle or DEFAULT)
    given = _by_name(others, {name: path for name, path in named.items() if path})
    paths = find_modalities(volumes, given, opened.manifest.modalities)
    check_output(output, paths)
    if trace:
        writable_folder(trace)
        if trace.resolve() in {path.resolve() for path in (output, *paths)}:
            raise OutputError(f"cannot write {trace}: it is the mask or an input; name another")
    images = [load_image(path) for path in paths]
    segmenter = Segmenter.load(
        opened, setup=setup, device=device, threads=threads, slots=slots, seed=seed
    )
    with segmenter:
        found = segmenter.segment(
            images,
            names=[str(path) for path in paths],
            every_slice=every_slice,
            progress=ProgressLine("slices"),
        )
    # Neither without the other, as far as two renames can be one.
    with whole_file(output) as beside:
        save_image(found.image, beside)
        if trace:
            write_trace(trace, segmenter, found, paths, every_slice)
    show_device(device, segmenter.backend)
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    preset = segmenter.setup.preset
    click.echo(
        f"{found.unhealthy_slices} of {len(found.slices)} slices unhealthy, "
        f"{'all segmented, ' if every_slice else ''}"
        f"{found.volume_ml:.1f} ml marked, {found.seconds:.0f} s"
        f"{'' if preset == opened.default else f', preset {preset}'}: mask in {output}"
    )


def _by_name(others: tuple[str, ...], named: dict[str, Path]) -> dict[str, Path]:
    for text in others:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise VolumeError(f"--modality {text}: write NAME=FILE")
        if name in named:
            raise VolumeError(f"{name} is given twice: name one file a modality")
        named[name] = Path(path)
    return named
