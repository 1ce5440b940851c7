"""The README's picture: slices of a volume, the anomaly map, the mask and the reference.

``python examples/picture.py VOLUME REFERENCE_MASK PICTURE``

Slices are drawn as radiologists look at them: the patient's right (R) on the left of the picture,
the front on top, whatever the axes of the file.
"""

from pathlib import Path
from typing import TypeVar

import click
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

from anofpdm import Segmentation, Segmenter
from anofpdm.calibrate.metrics import dice

COLUMNS = 6
MARGIN_MM = 5
GRAY, BLUE, RED = "#b0b0b0", "deepskyblue", "#ff2d2d"
Float64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)


@click.command()
@click.argument("volume", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), help="[default: all cores]")
def main(volume: Path, reference: Path, picture: Path, threads: int | None) -> None:
    """Draw slices around the lesion."""
    image = nib.load(volume)
    result = Segmenter.load(device="cpu", threads=threads).segment(image)
    reference_mask = np.asarray(nib.load(reference).dataobj) > 0
    draw_slices(result, image.get_fdata(), reference_mask, image.affine, picture)
    click.echo(figures(result, reference_mask))
    click.echo(decisions(result, radiological(reference_mask, image.affine)))


def draw_slices(
    result: Segmentation, values: Float64, reference: Mask, affine: Float64, picture: Path
) -> None:
    """Draw columns of FLAIR, anomaly map and mask, from below the lesion to above it."""
    flair, heat, mask, drawn = (
        radiological(array, affine)
        for array in (values, result.anomaly_map().get_fdata(), result.mask > 0, reference)
    )
    unhealthy = {s.key: s.unhealthy for s in result.slices}
    window, aspect = around_head(flair, affine), pixel_aspect(affine)
    levels = around_lesion(drawn, sorted(unhealthy))
    white = white_level(flair)
    brightest = float(np.percentile(heat[levels][drawn[levels]], 99))
    size = (2 * COLUMNS, 6 * panel_ratio(flair[0][window], aspect) + 0.3)
    figure, axes = plt.subplots(3, COLUMNS, figsize=size, facecolor="black")
    for column, level in zip(axes.T, levels, strict=True):
        draw_flair(column[0], flair[level][window], white, aspect)
        draw_map(column[1], heat[level][window], brightest, aspect)
        draw_flair(column[2], flair[level][window], white, aspect)
        outline(column[2], drawn[level][window], BLUE)
        outline(column[2], mask[level][window], RED)
        decision = "unhealthy" if unhealthy[level] else "healthy"
        column[0].set_title(f"slice {level}: {decision}", color="white", fontsize=11, pad=4)
    for axis, name in zip(axes[:, 0], ("FLAIR", "anomaly map H", "mask, reference"), strict=True):
        caption(axis, name)
    figure.subplots_adjust(0.002, 0.002, 0.998, 1 - 0.28 / size[1], wspace=0.02, hspace=0.02)
    figure.savefig(picture, dpi=100, facecolor="black")
    plt.close(figure)


def radiological(array: NDArray[T], affine: Float64) -> NDArray[T]:
    """Axial slices of an (X, Y, Z) array, from the feet up: (slices, rows, columns), rows leading
    to the patient's back and columns to the patient's left.

    Parameters
    ----------
    affine : of the array; its closest canonical orientation says where the axes lead
    """
    canonical = apply_orientation(array, io_orientation(affine))
    return np.asarray(canonical[::-1, ::-1].transpose(2, 1, 0))


def pixel_aspect(affine: Float64) -> float:
    """Height over width of a pixel of :func:`radiological`."""
    order = np.argsort(io_orientation(affine)[:, 0])
    width, height, _ = voxel_sizes(affine)[order]
    return float(height / width)


def around_head(flair: Float64, affine: Float64) -> tuple[slice, slice]:
    """The window of rows and columns that shows the head on every slice."""
    head = (flair > 0.1 * np.percentile(flair, 99)).sum(axis=0) > 1
    margin = round(MARGIN_MM / float(voxel_sizes(affine).min()))
    rows, columns = np.flatnonzero(head.any(axis=1)), np.flatnonzero(head.any(axis=0))
    return (
        slice(max(rows[0] - margin, 0), rows[-1] + margin + 1),
        slice(max(columns[0] - margin, 0), columns[-1] + margin + 1),
    )


def around_lesion(drawn: Mask, processed: list[int]) -> list[int]:
    """Evenly chosen levels of the processed slices, from below a lesion to above it."""
    lesion = np.flatnonzero(drawn.any(axis=(1, 2)))
    beyond = max(len(lesion) // 6, 1)
    first, last = lesion[0] - beyond, lesion[-1] + beyond
    near = [level for level in processed if first <= level <= last]
    places = np.linspace(0, len(near) - 1, COLUMNS).round().astype(int)
    return [near[place] for place in places]


def white_level(flair: Float64) -> float:
    """The brightness that is drawn white: at least twice the median, for brains without scalp."""
    head = flair[flair > 0.2 * np.percentile(flair, 99)]
    return float(max(np.percentile(head, 99.7), 2 * np.median(head)))


def panel_ratio(plane: NDArray[T], aspect: float) -> float:
    """Height over width of a picture of a slice."""
    return aspect * plane.shape[0] / plane.shape[1]


def draw_flair(axis: Axes, plane: Float64, white: float, aspect: float) -> None:
    """Draw a slice of :func:`radiological` in gray, with its sides."""
    axis.imshow(plane, cmap="gray", vmin=0, vmax=white, aspect=aspect, interpolation="bilinear")
    label_sides(axis)


def draw_map(axis: Axes, plane: Float64, brightest: float, aspect: float) -> None:
    """Draw a slice of the anomaly map, with its sides."""
    axis.imshow(
        plane, cmap="inferno", vmin=0, vmax=brightest, aspect=aspect, interpolation="bilinear"
    )
    label_sides(axis)


def outline(axis: Axes, mask: Mask, color: str, style: str = "solid") -> None:
    """Draw the outline of a mask, if there is any."""
    if mask.any():
        axis.contour(mask.astype(float), [0.5], colors=color, linestyles=style, linewidths=1.4)


def label_sides(axis: Axes) -> None:
    """Mark the patient's right (R) and left (L) on a slice of :func:`radiological`."""
    axis.axis("off")
    for x, letter, side in ((0.03, "R", "left"), (0.97, "L", "right")):
        axis.text(
            x, 0.97, letter, color=GRAY, fontsize=10, ha=side, va="top", transform=axis.transAxes
        )


def caption(axis: Axes, text: str) -> None:
    """Write into the lower left corner."""
    axis.text(
        0.03, 0.02, text, color="white", fontsize=11, transform=axis.transAxes,
        bbox={"facecolor": "black", "alpha": 0.7, "pad": 2, "linewidth": 0},
    )  # fmt: skip


def figures(result: Segmentation, reference: Mask) -> str:
    """What one quotes of a segmented volume."""
    return (
        f"{result.volume_ml:.1f} ml marked, {result.unhealthy_slices} of {len(result.slices)} "
        f"slices; Dice with the reference {dice(result.mask > 0, reference):.2f}"
    )


def decisions(result: Segmentation, drawn: Mask) -> str:
    """How many slices with the reference are called unhealthy, and how many others.

    Parameters
    ----------
    drawn : the reference, as :func:`radiological` has it
    """
    lesion = np.array([drawn[s.key].any() for s in result.slices])
    unhealthy = np.array([s.unhealthy for s in result.slices])
    return (
        f"{(lesion & unhealthy).sum()} of {lesion.sum()} slices with the reference marked; "
        f"{(unhealthy & ~lesion).sum()} others marked"
    )


if __name__ == "__main__":
    main()
