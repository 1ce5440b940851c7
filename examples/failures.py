"""Where the default model fails or comes to its limits: ``python examples/failures.py``.

Small lesions of multiple sclerosis in a brain-extracted volume; and the simulated lesion of
:mod:`make_examples` made fainter, smaller, and larger. Of each volume one slice, the one with the
largest reference (of equals the highest): FLAIR, the anomaly map H (each brightest at its largest
value), the reference (blue) and the mask (red; dotted where the decision is healthy, so that only
``--every-slice`` would write it). The patient's right (R) is on the left. Attribution: see
README.md beside this file.
"""

from pathlib import Path

import click
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from make_examples import BEFORE, BRIGHTNESS, HERE, MS_FLAIR, MS_LESIONS, blend
from matplotlib.axes import Axes
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import SpatialImage
from picture import (
    BLUE,
    RED,
    Mask,
    around_head,
    caption,
    draw_flair,
    draw_map,
    figures,
    outline,
    panel_ratio,
    pixel_aspect,
    radiological,
    white_level,
)

from anofpdm import Segmentation, Segmenter
from anofpdm.calibrate.metrics import dice

PICTURE = HERE / "failures.png"
FAINT, SMALL, LARGE = 1.2, 0.3, 2.4
WIDTH = 2.2  # inches of a picture
TITLE = 0.3


def cases() -> dict[str, tuple[SpatialImage, Mask]]:
    """Volumes and their reference masks, by name."""
    head = nib.load(BEFORE)
    ms_lesions = np.asarray(nib.load(MS_LESIONS).dataobj) > 0
    made = {"multiple sclerosis, brain-extracted": (nib.load(MS_FLAIR), ms_lesions)}
    for name, brightness, size in (
        (f"simulated, faint: {FAINT:g} x tissue", FAINT, 1.0),
        (f"simulated, small: {SMALL:g} x the radii", BRIGHTNESS, SMALL),
        (f"simulated, large: {LARGE:g} x the radii", BRIGHTNESS, LARGE),
    ):
        values, lesion = blend(head, brightness, size)
        made[name] = nib.Nifti1Image(values, head.affine), lesion
    return made


@click.command()
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
@click.option("-o", "--output", default=PICTURE, type=click.Path(path_type=Path))
def main(threads: int | None, output: Path) -> None:
    """Draw a row for each case."""
    segmenter = Segmenter.load(device="cpu", threads=threads)
    grid = segmenter.bundle.manifest.grid
    volumes = cases()
    results = list(segmenter.segment_many(image for image, _ in volumes.values()))
    heights = [row_height(image) for image, _ in volumes.values()]
    figure, axes = plt.subplots(
        len(volumes), 3, figsize=(3 * WIDTH, sum(heights) + TITLE * len(heights)),
        facecolor="black", height_ratios=heights,
    )  # fmt: skip
    for row, (name, (image, reference)), result in zip(axes, volumes.items(), results, strict=True):
        draw(row, name, result, image, reference)
        share = largest_mm2(reference, image) / (grid.size * grid.pixel_mm) ** 2
        click.echo(f"{name} ({share:.1%} of the model's slice): {figures(result, reference)}")
        for note in result.notes:
            click.echo(f"  note: {note}")
    for axis, name in zip(axes[0], ("FLAIR", "anomaly map H", "mask, reference"), strict=True):
        caption(axis, name)
    # Not tight_layout: the titles are wider than a column.
    top = 1 - TITLE / figure.get_figheight()
    figure.subplots_adjust(0.01, 0.005, 0.99, top, wspace=0.02, hspace=0.12)
    figure.savefig(output, dpi=100, facecolor="black")
    plt.close(figure)


def draw(
    row: list[Axes], name: str, result: Segmentation, image: SpatialImage, reference: Mask
) -> None:
    """Draw the slice with the largest reference."""
    flair, heat, mask, drawn = (
        radiological(array, image.affine)
        for array in (
            image.get_fdata(), result.anomaly_map().get_fdata(), every_mask(result), reference
        )
    )  # fmt: skip
    areas = drawn.sum(axis=(1, 2))
    level = int(np.flatnonzero(areas == areas.max())[-1])
    unhealthy = next(s.unhealthy for s in result.slices if s.key == level)
    window, aspect = around_head(flair, image.affine), pixel_aspect(image.affine)
    for axis in (row[0], row[2]):
        draw_flair(axis, flair[level][window], white_level(flair), aspect)
    draw_map(row[1], heat[level][window], float(heat[level].max()), aspect)
    outline(row[2], drawn[level][window], BLUE)
    outline(row[2], mask[level][window], RED, "solid" if unhealthy else "dotted")
    score, decision = dice(mask[level], drawn[level]), "unhealthy"
    if not unhealthy:
        decision = "healthy, Dice 0; whatever the decision"
    title = f"{name}; decision: {decision}, Dice {score:.2f}"
    row[0].set_title(title, color="white", fontsize=9, loc="left", pad=4)


def every_mask(result: Segmentation) -> Mask:
    """The mask on the input's grid, whatever the decisions."""
    planes = np.stack([s.mask for s in result.slices])
    return np.asarray(result.geometry.to_source(planes) >= 0.5)


def largest_mm2(mask: Mask, image: SpatialImage) -> float:
    """The largest area of a mask in an axial slice."""
    order = np.argsort(nib.io_orientation(image.affine)[:, 0])
    pixel_mm2 = float(voxel_sizes(image.affine)[order[:2]].prod())
    return float(radiological(mask, image.affine).sum(axis=(1, 2)).max()) * pixel_mm2


def row_height(image: SpatialImage) -> float:
    """Inches that a row takes, without its title."""
    flair = radiological(image.get_fdata(), image.affine)
    plane = flair[0][around_head(flair, image.affine)]
    return WIDTH * panel_ratio(plane, pixel_aspect(image.affine))


if __name__ == "__main__":
    main()
