"""Makes the example volumes of this folder from two data sets of the Ljubljana MS patients.

``python examples/make_examples.py DATA`` makes all files; DATA is a folder that holds, at any
depth, ``patient20_study2_flair.nii.gz`` of the longitudinal set and ``patient07_flair.nii.gz`` with
``patient07_seg.nii.gz`` of the brain-extracted one (both CC BY; see README.md beside this file).
Without DATA, the lesion is blended again into the volume that is there.

The first volume is cropped to the head, and a lesion like a glioma with its oedema is blended into
a copy. The second one is cropped to the brain and averaged to 2 mm.
"""

import gzip
from pathlib import Path

import click
import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from scipy import ndimage

Float64 = NDArray[np.float64]
Mask = NDArray[np.bool_]

HERE = Path(__file__).parent
FLAIR, LESION, BEFORE = (
    HERE / f"{name}.nii.gz" for name in ("flair", "flair_lesion", "flair_before")
)
MS_FLAIR, MS_LESIONS = HERE / "ms_flair.nii.gz", HERE / "ms_lesions.nii.gz"
HEAD_NAME = "patient20_study2_flair.nii.gz"
MS_NAME, MS_LESIONS_NAME = "patient07_flair.nii.gz", "patient07_seg.nii.gz"

MARGIN = 6  # voxels around a head or brain
CENTER_MM = np.array([-25.0, 40.0, 34.0])  # left frontal white matter, in the scanner
# Lobes of the tumour: offsets from the centre and radii, in mm to the right, front and top.
LOBES_MM = (
    ((0, 0, 0), (10, 14, 9)),
    ((-3, -12, 5), (8, 9, 8)),
    ((5, 11, -5), (7, 9, 7)),
    ((7, -6, -6), (6, 7, 6)),
)
# Oedema reaches so far beyond the tumour in white matter, and hardly into grey matter.
OEDEMA_MM = 10.0
BRIGHTNESS = 1.75  # of the tumour, in multiples of the tissue around it
OEDEMA_BRIGHTNESS = 0.6  # of what the tumour adds
SEED = 7


def crop_head(source: Path) -> None:
    """Crop a FLAIR volume in-plane to the head; voxels and their places stay as they are."""
    image = nib.load(source)
    values = np.asarray(image.dataobj)
    head = (values > 0.1 * np.percentile(values, 99)).any(axis=2)
    inside = np.argwhere(ndimage.binary_opening(head, iterations=2))
    first = np.maximum(inside.min(axis=0) - MARGIN, 0)
    last = inside.max(axis=0) + MARGIN + 1
    cropped = image.slicer[first[0] : last[0], first[1] : last[1]]
    save(np.asarray(cropped.dataobj), cropped.affine, "scanner", BEFORE)


def shrink_brain(source: Path, lesions: Path) -> None:
    """Crop a brain-extracted FLAIR and its lesions to the brain and average 2x2x2 voxels."""
    flair = nib.load(source)
    values = flair.get_fdata()
    inside = np.argwhere(values > 5)
    first = np.maximum(inside.min(axis=0) - MARGIN, 0)
    beyond = np.minimum(inside.max(axis=0) + MARGIN, values.shape)
    last = first + (beyond - first) // 2 * 2
    window = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    affine = flair.affine @ from_matvec(np.diag([2, 2, 2]), first + 0.5)
    halved = halve(np.clip(values[window], 0, None))
    save(np.rint(10 * halved).astype(np.int16), affine, "mni", MS_FLAIR)
    drawn = halve(nib.load(lesions).get_fdata()[window]) >= 0.5
    save(drawn.astype(np.uint8), affine, "mni", MS_LESIONS)


def simulate() -> None:
    """Make the volume with a lesion, and the reference mask of the lesion."""
    image = nib.load(BEFORE)
    values, lesion = blend(image)
    save(values, image.affine, "scanner", FLAIR)
    save(lesion.astype(np.uint8), image.affine, "scanner", LESION)


def blend(
    image: SpatialImage, brightness: float = BRIGHTNESS, size: float = 1.0
) -> tuple[NDArray[np.uint16], Mask]:
    """Blend a lobulated tumour with oedema, which follows the white matter, into a head.

    Parameters
    ----------
    brightness : of the tumour, in multiples of the tissue around it
    size : multiple of the radii of its lobes and of the reach of the oedema

    Returns
    -------
    values, and the reference mask: tumour and oedema, as FLAIR abnormality is drawn
    """
    values, voxel_mm = image.get_fdata(), voxel_sizes(image.affine)
    brain = brain_mask(values, voxel_mm)
    local_level = local_mean(values, brain, 25 / voxel_mm)
    white = white_matter(values / local_level, brain, voxel_mm)
    rng = np.random.Generator(np.random.Philox(SEED))

    distance_mm = size * tumour_distance(image, size)
    distance_mm += size * 2.0 * smooth_noise(rng, values.shape, 5 / voxel_mm)
    tumour = sigmoid(-distance_mm / 1.8)
    reach_mm = size * (1 + OEDEMA_MM * ndimage.gaussian_filter(white, 4 / voxel_mm))
    extent = sigmoid(-(distance_mm - reach_mm) / 1.2)
    oedema = OEDEMA_BRIGHTNESS * extent * (0.4 + 0.6 * white)
    tissue = ndimage.gaussian_filter(brain.astype(float), 0.6 / voxel_mm)
    share = (oedema + (1 - oedema) * tumour) * tissue

    texture = 0.05 * smooth_noise(rng, values.shape, 3 / voxel_mm)
    texture += 0.015 * rng.standard_normal(values.shape)
    bright = local_level * (brightness + texture) + 0.3 * (values - local_level)
    blended = values + share * np.clip(bright - values, 0, None)
    return np.rint(blended).astype(np.uint16), largest_part(extent * tissue > 0.5)


def tumour_distance(image: SpatialImage, size: float) -> Float64:
    """Distance from the surface of the united lobes, negative inside, in mm at size 1."""
    voxels = np.moveaxis(np.indices(image.shape), 0, -1)
    places = (apply_affine(image.affine, voxels) - CENTER_MM) / size
    softness = 3.0
    nearness = np.zeros(image.shape)
    for offset, radii in LOBES_MM:
        from_middle = np.linalg.norm((places - offset) / np.array(radii), axis=-1)
        nearness += np.exp(-(from_middle - 1) * np.mean(radii) / softness)
    return np.asarray(-softness * np.log(np.maximum(nearness, 1e-30)))


def brain_mask(values: Float64, voxel_mm: Float64) -> Mask:
    """The brain without the fluid in and around it: the largest part that stays when the links to
    the scalp are eroded."""
    head = values > 0.2 * np.percentile(values, 99)
    tissue = values > 0.5 * np.median(values[head])
    eroded = ndimage.binary_erosion(tissue, ball(4.0, voxel_mm))
    return ndimage.binary_dilation(largest_part(eroded), ball(4.5, voxel_mm)) & tissue


def local_mean(values: Float64, brain: Mask, sigma: Float64) -> Float64:
    """The mean brightness of the brain near each voxel."""
    weight = ndimage.gaussian_filter(brain.astype(float), sigma)
    return np.asarray(ndimage.gaussian_filter(values * brain, sigma) / np.maximum(weight, 1e-3))


def white_matter(relative: Float64, brain: Mask, voxel_mm: Float64) -> Float64:
    """How far a voxel is white matter, 0 to 1: in FLAIR it is darker than the cortex.

    Parameters
    ----------
    relative : brightness in multiples of the mean of the brain nearby
    """
    smoothed = ndimage.gaussian_filter(relative, (0.8, 0.8, 0))
    share = sigmoid((1.05 - smoothed) / 0.04) * brain
    return np.asarray(ndimage.gaussian_filter(share, 1 / voxel_mm))


def largest_part(mask: Mask) -> Mask:
    """The largest connected part of a mask."""
    parts, count = ndimage.label(mask)
    sizes = ndimage.sum(mask, parts, range(1, count + 1))
    return np.asarray(parts == 1 + np.argmax(sizes))


def ball(radius_mm: float, voxel_mm: Float64) -> Mask:
    """A ball as a structuring element."""
    reach = [int(radius_mm / mm) for mm in voxel_mm]
    offsets = np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij")
    squared = [(offset * mm) ** 2 for offset, mm in zip(offsets, voxel_mm, strict=True)]
    return np.asarray(np.sum(squared, axis=0) <= radius_mm**2)


def sigmoid(x: Float64) -> Float64:
    """The logistic function."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -50, 50))))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: Float64) -> Float64:
    """Smooth Gaussian noise of unit variance."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    return np.asarray(noise / noise.std())


def halve(values: Float64) -> Float64:
    """Average 2x2x2 voxels."""
    x, y, z = (n // 2 for n in values.shape)
    return values.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5))


def save(values: NDArray[np.generic], affine: Float64, code: str, path: Path) -> None:
    """Write a compressed NIfTI file that depends on its content alone."""
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, code=code)
    image.set_qform(affine, code=code)
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), 9, mtime=0))


def locate(folder: Path, name: str) -> Path:
    """The file of this name in a folder, at any depth."""
    places = sorted(folder.rglob(name))
    if not places:
        raise click.ClickException(f"there is no {name} in {folder}")
    return places[0]


@click.command()
@click.argument("data", required=False, type=click.Path(exists=True, path_type=Path))
def main(data: Path | None) -> None:
    """Make the example volumes."""
    if data:
        crop_head(locate(data, HEAD_NAME))
        shrink_brain(locate(data, MS_NAME), locate(data, MS_LESIONS_NAME))
    simulate()


if __name__ == "__main__":
    main()
