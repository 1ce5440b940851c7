"""Makes the example volumes of this folder.

From a patient of the Ljubljana MS data set (CC BY; see README.md beside this file): crop to the
brain, average to 2 mm, and blend a simulated glioma-like lesion into a copy. Run with the
patient's folder, ``python examples/make_examples.py PATIENT_FOLDER``, all files are made; without,
the simulated ones are made again from the shipped volume.
"""

from __future__ import annotations

from pathlib import Path

import click
import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from scipy import ndimage

HERE = Path(__file__).parent
FLAIR, LESIONS = HERE / "ms_flair.nii.gz", HERE / "ms_lesions.nii.gz"
SIMULATED, SIMULATED_MASK = HERE / "simulated_flair.nii.gz", HERE / "simulated_mask.nii.gz"

MARGIN = 6  # voxels of 1 mm around the brain
CENTER_MM = np.array([28.0, 12.0, 30.0])  # right frontal white matter, MNI
RADII_MM = np.array([20.0, 27.0, 19.0])
EDGE_MM = 2.5
SEED = 7


def shrink(patient: Path) -> None:
    """Crop a patient's FLAIR and lesion mask to the brain and average 2x2x2 voxels."""
    flair = nib.load(patient / f"{patient.name}_flair.nii.gz")
    lesions = nib.load(patient / f"{patient.name}_seg.nii.gz")
    values = flair.get_fdata()
    inside = np.argwhere(values > 5)
    first = np.maximum(inside.min(axis=0) - MARGIN, 0)
    last = first + (inside.max(axis=0) + MARGIN - first) // 2 * 2
    window = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    affine = flair.affine @ nib.affines.from_matvec(np.diag([2, 2, 2]), first + 0.5)
    halved = _halve(np.clip(values[window], 0, None))
    _save(np.rint(10 * halved).astype(np.int16), affine, FLAIR)
    drawn = _halve(lesions.get_fdata()[window]) >= 0.5
    _save(drawn.astype(np.uint8), affine, LESIONS)


def simulate() -> None:
    """Make the simulated volume and its mask."""
    image = nib.load(FLAIR)
    blended, lesion = blend(image)
    _save(blended, image.affine, SIMULATED)
    _save(lesion.astype(np.uint8), image.affine, SIMULATED_MASK)


def blend(
    image: SpatialImage, brightness: float = 1.75, size: float = 1.0
) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """Blend a lesion with a smooth, irregular edge and the texture of FLAIR oedema into a brain.

    Parameters
    ----------
    brightness : of the lesion, in multiples of the tissue's median
    size : multiple of ``RADII_MM``

    Returns
    -------
    values, and where the lesion is
    """
    values = image.get_fdata()
    voxel_mm = nib.affines.voxel_sizes(image.affine)
    radii_mm = size * RADII_MM
    brain = values > 0.4 * np.median(values[values > 0])
    tissue = float(np.median(values[brain]))
    rng = np.random.Generator(np.random.Philox(SEED))

    voxels = np.moveaxis(np.indices(values.shape), 0, -1)
    offset = (nib.affines.apply_affine(image.affine, voxels) - CENTER_MM) / radii_mm
    distance_mm = (np.linalg.norm(offset, axis=-1) - 1) * radii_mm.mean()
    distance_mm += size * 4.5 * _smooth_noise(rng, values.shape, 7.0 / voxel_mm)
    share = 1 / (1 + np.exp(distance_mm / (EDGE_MM / 2)))
    share *= ndimage.gaussian_filter(brain.astype(float), 0.5)

    texture = 0.06 * _smooth_noise(rng, values.shape, 3.0 / voxel_mm)
    texture += 0.02 * rng.standard_normal(values.shape)
    # Oedema in FLAIR is up to twice as bright as the tissue it fills.
    oedema = tissue * (brightness + texture) + 0.25 * (values - tissue)
    blended = values + share * np.clip(oedema - values, 0, None)
    return np.rint(blended).astype(np.int16), share > 0.5


def _halve(values: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = (n // 2 for n in values.shape)
    return values.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5))


def _smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: NDArray[np.float64]
) -> NDArray[np.float64]:
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    return np.asarray(noise / noise.std())


def _save(values: NDArray[np.generic], affine: NDArray[np.float64], path: Path) -> None:
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


@click.command()
@click.argument("patient", required=False, type=click.Path(exists=True, path_type=Path))
def main(patient: Path | None) -> None:
    """Make the example volumes."""
    if patient:
        shrink(patient)
    simulate()


if __name__ == "__main__":
    main()
