"""``anofpdm-infer``: a volume in, a mask out."""

from __future__ import annotations

from pathlib import Path

import click

from .command import ProgressLine, bundle_option, reports_errors, seed_option, threads_option
from .segmenter import Segmenter
from .volume import check_output, load_image, save_image


@click.command()
@click.argument("volumes", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The mask.")
@bundle_option
@click.option(
    "--every-slice",
    is_flag=True,
    help="Segment slices that are found healthy, too: marks something on every slice.",
)
@seed_option
@threads_option
@click.version_option(package_name="anofpdm")
@reports_errors
def main(
    volumes: tuple[Path, ...],
    output: Path,
    bundle: Path | None,
    every_slice: bool,
    seed: int,
    threads: int | None,
) -> None:
    """Segment anomalies in brain MRI.

    VOLUMES is one NIfTI file, or one per modality in the order of the bundle. The mask (0 or 1)
    has the first volume's grid. For research, not for diagnosis.

    Example: anofpdm-infer flair.nii.gz -o mask.nii.gz
    """
    check_output(output, list(volumes))
    images = [load_image(path) for path in volumes]
    segmenter = Segmenter.load(bundle, threads=threads, seed=seed)
    found = segmenter.segment(
        images,
        names=[str(path) for path in volumes],
        every_slice=every_slice,
        progress=ProgressLine("slices"),
    )
    save_image(found.image, output)
    click.echo(
        f"{found.unhealthy_slices} of {len(found.slices)} slices unhealthy, "
        f"{'all segmented, ' if every_slice else ''}"
        f"{found.volume_ml:.1f} ml marked, {found.seconds:.0f} s: mask in {output}"
    )
