"""The README's picture: slices of a volume, the anomaly map, the mask and the reference.

``python examples/picture.py VOLUME REFERENCE_MASK PICTURE``
"""

from __future__ import annotations

from pathlib import Path

import click
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from anofpdm import Segmentation, Segmenter
from anofpdm.calibrate.metrics import dice
from anofpdm.runtime.volume.grid import Grid, masks_to_grid, to_grid
from anofpdm.runtime.volume.reader import read_volume

COLUMNS = 6
Mask = NDArray[np.bool_]


@click.command()
@click.argument("volume", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("picture", type=click.Path(path_type=Path))
def main(volume: Path, reference: Path, picture: Path) -> None:
    """Draw slices around the lesion."""
    segmenter = Segmenter.load()
    image = nib.load(volume)
    found = segmenter.segment(image)
    reference_mask = np.asarray(nib.load(reference).dataobj) > 0
    slices, drawn = on_grid(image, reference_mask, segmenter.bundle.manifest.grid)
    shown = np.flatnonzero(drawn.any(axis=(1, 2)))
    first, last = max(shown[0] - 6, 0), min(shown[-1] + 6, len(slices) - 1)
    columns = np.linspace(first, last, COLUMNS).round().astype(int)
    extent = around_the_head(slices)
    brightest = max(found.slices[i].H.max() for i in columns) / 2
    figure, axes = plt.subplots(3, COLUMNS, figsize=(2 * COLUMNS, 6.9), facecolor="black")
    for column, i in zip(axes.T, columns, strict=True):
        result = found.slices[i]
        flair = slices[i, 0][extent].T
        for axis in column:
            axis.imshow(flair, cmap="gray", vmin=-1, vmax=0.7, origin="lower")
            axis.axis("off")
        column[1].imshow(result.H[extent].T, cmap="inferno", vmin=0, vmax=brightest, origin="lower")
        decision = "unhealthy" if result.unhealthy else "healthy"
        column[0].set_title(f"slice {result.key}: {decision}", color="white", fontsize=8)
        for mask, color in ((drawn[i], "deepskyblue"), (result.mask & result.unhealthy, "red")):
            if mask.any():
                column[2].contour(mask[extent].T, [0.5], colors=color, linewidths=1.4)
    for axis, name in zip(axes[:, 0], ("FLAIR", "anomaly map H", "mask"), strict=True):
        axis.text(0.03, 0.03, name, color="white", fontsize=9, transform=axis.transAxes)
    figure.tight_layout(pad=0.3)
    figure.savefig(picture, dpi=75, facecolor="black")
    click.echo(figures(found, reference_mask))
    there = drawn.any(axis=(1, 2))
    marked = np.array([result.unhealthy for result in found.slices])
    click.echo(f"{(there & marked).sum()} of {there.sum()} slices with the reference found; "
               f"{(marked & ~there).sum()} others marked")  # fmt: skip


def on_grid(image: SpatialImage, reference: Mask, grid: Grid) -> tuple[NDArray[np.float32], Mask]:
    """The slices that are processed, (n, 1, size, size), and the reference on them, (n, size,
    size)."""
    canonical = read_volume([image], ["the volume"], 1)
    slices, placement = to_grid(canonical.data, canonical.voxel_mm, grid)
    return slices, masks_to_grid(canonical.from_source(reference), grid, placement)


def around_the_head(slices: NDArray[np.float32]) -> tuple[slice, slice]:
    """The window of a slice that shows the head on every one."""
    window = np.flatnonzero((slices[:, 0] > -0.9).any(axis=(0, 2)))
    height = np.flatnonzero((slices[:, 0] > -0.9).any(axis=(0, 1)))
    return slice(window[0] - 3, window[-1] + 4), slice(height[0] - 3, height[-1] + 4)


def figures(found: Segmentation, reference: Mask) -> str:
    """What one quotes of a segmented volume."""
    return (
        f"{found.volume_ml:.1f} ml marked, {found.unhealthy_slices} of {len(found.slices)} slices; "
        f"Dice with the reference {dice(found.mask.astype(bool), reference):.2f}"
    )


if __name__ == "__main__":
    main()
