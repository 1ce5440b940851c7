"""Where the default model fails or comes to its limits: ``python examples/failures.py``.

Small lesions of multiple sclerosis; and the simulated lesion of :mod:`make_examples` made fainter,
smaller, and larger. Of each
volume one slice, the one with the largest reference: FLAIR, the anomaly map H (each brightest at
its own largest value), the reference (blue) and the mask (red; dotted where the decision is healthy,
so that only ``--every-slice`` would write it). Attribution: see README.md beside this file.
"""

from __future__ import annotations

from pathlib import Path

import click
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from make_examples import FLAIR, HERE, LESIONS, blend
from matplotlib.axes import Axes
from nibabel.spatialimages import SpatialImage
from picture import Mask, around_the_head, figures, on_grid

from anofpdm import Segmentation, Segmenter
from anofpdm.calibrate.metrics import dice
from anofpdm.runtime.volume.grid import Grid

PICTURE = HERE / "failures.png"
FAINT, SMALL, LARGE = 1.25, 0.3, 2.4


def cases() -> dict[str, tuple[SpatialImage, Mask]]:
    """Volumes and their reference masks, by name."""
    flair = nib.load(FLAIR)
    made = {"multiple sclerosis": (flair, np.asarray(nib.load(LESIONS).dataobj) > 0)}
    for name, brightness, size in (
        (f"simulated, faint: {FAINT:g} x tissue", FAINT, 1.0),
        (f"simulated, small: {SMALL:g} x the radii", 1.75, SMALL),
        (f"simulated, large: {LARGE:g} x the radii", 1.75, LARGE),
    ):
        values, lesion = blend(flair, brightness, size)
        made[name] = nib.Nifti1Image(values, flair.affine), lesion
    return made


@click.command()
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("-o", "--output", default=PICTURE, type=click.Path(path_type=Path))
def main(threads: int | None, output: Path) -> None:
    """Draw a row for each case."""
    segmenter = Segmenter.load(device="cpu", threads=threads)
    shown = cases()
    found = segmenter.segment_many(image for image, _ in shown.values())
    figure, axes = plt.subplots(len(shown), 3, figsize=(6.6, 2.75 * len(shown)), facecolor="black")
    for row, (name, (image, reference)), one in zip(axes, shown.items(), found, strict=True):
        share = draw(row, name, one, image, reference, segmenter.bundle.manifest.grid)
        click.echo(f"{name} ({share:.1%} of the slice that is shown): {figures(one, reference)}")
    for axis, name in zip(axes[0], ("FLAIR", "anomaly map H", "mask, reference"), strict=True):
        axis.text(0.03, 0.03, name, color="white", fontsize=9, transform=axis.transAxes)
    # Not tight_layout: the titles are wider than a column.
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.975, wspace=0.02, hspace=0.12)
    figure.savefig(output, dpi=100, facecolor="black")


def draw(
    row: list[Axes],
    name: str,
    found: Segmentation,
    image: SpatialImage,
    reference: Mask,
    grid: Grid,
) -> float:
    """Draw the slice with the largest reference, and say what share of its pixels that is."""
    slices, drawn = on_grid(image, reference, grid)
    i = int(drawn.sum(axis=(1, 2)).argmax())
    result, extent = found.slices[i], around_the_head(slices)
    for axis in row:
        axis.imshow(slices[i, 0][extent].T, cmap="gray", vmin=-1, vmax=0.7, origin="lower")
        axis.axis("off")
    row[1].imshow(result.H[extent].T, cmap="inferno", vmin=0, origin="lower")
    line = "solid" if result.unhealthy else "dotted"
    for mask, color, style in ((drawn[i], "deepskyblue", "solid"), (result.mask, "red", line)):
        if mask.any():
            row[2].contour(mask[extent].T, [0.5], colors=color, linestyles=style, linewidths=1.2)
    score, decision = dice(result.mask, drawn[i]), "unhealthy"
    if not result.unhealthy:
        decision = "healthy, Dice 0; whatever the decision"
    title = f"{name}; decision: {decision}, Dice {score:.2f}"
    row[0].set_title(title, color="white", fontsize=9, loc="left")
    return float(drawn[i].mean())


if __name__ == "__main__":
    main()
