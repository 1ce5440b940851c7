"""From a cohort to prepared slices: read, resample onto the grid, label, write."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.errors import AnofpdmError, CohortError
from anofpdm.runtime.volume.grid import Grid, GridPlacement, masks_to_grid, to_grid
from anofpdm.runtime.volume.nifti import load_image
from anofpdm.runtime.volume.reader import Volume, read_volume, resample_onto, same_grid
from anofpdm.runtime.volume.voxels import read_values

from .cohort import Case
from .dataset import SliceRecord, SliceWriter, writing


def prepare(
    cases: list[Case],
    modalities: tuple[str, ...],
    grid: Grid,
    folder: Path,
    source: Mapping[str, Any],
    report: Callable[[int, int], None],
) -> None:
    """Write the slices of all cases to ``folder``, as :mod:`anofpdm.train.dataset` describes.

    A slice is unhealthy if its mask has a voxel or its label is 1. Modalities and masks on other
    grids are resampled onto the first modality's.

    Parameters
    ----------
    source : cohort and seed for the index, JSON values
    report : called with the cases done and their total

    Raises
    ------
    CohortError
        If a file cannot be used; the message names it.
    """
    with writing(folder, modalities, grid, source) as writer:
        for done, case in enumerate(cases, start=1):
            try:
                _prepare_case(case, modalities, grid, writer)
            except CohortError:
                raise
            except AnofpdmError as error:
                raise CohortError(f"patient {case.patient}: {error}") from error
            report(done, len(cases))


def _prepare_case(case: Case, modalities: tuple[str, ...], grid: Grid, writer: SliceWriter) -> None:
    paths = case.paths(modalities)
    names = [str(path) for path in paths]
    volume = read_volume([load_image(path) for path in paths], names, len(modalities))
    slices, placement = to_grid(volume.data, volume.voxel_mm, grid)
    if case.mask is not None:
        mask = _read_mask(case.mask, volume)
        unhealthy: NDArray[np.bool_] = np.asarray(mask.any(axis=(0, 1)))
        reference = masks_to_grid(mask, grid, placement)
    elif not case.slice_labels:
        raise CohortError(
            f"patient {case.patient} has neither a mask nor slice_labels: leave the scan out, or "
            "list the cohort in a CSV with slice_labels"
        )
    else:
        unhealthy = _parse_labels(case, placement)
        reference = None
    slice_mm = float(volume.voxel_mm[2])
    for i, level in enumerate(placement.levels):
        record = SliceRecord(
            case.patient,
            int(level),
            case.split,
            bool(unhealthy[level]),
            reference is not None,
            slice_mm,
        )
        writer.add(record, slices[i], None if reference is None else reference[i])


def _read_mask(path: Path, volume: Volume) -> NDArray[np.bool_]:
    """Canonical (X, Y, Z) mask on the volume's grid; all nonzero classes are lesion."""
    image = load_image(path)
    values = read_values(image, str(path))
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise CohortError(f"{path} has shape {values.shape}, not (X, Y, Z)")
    if not same_grid(image, volume.source):
        plain = nib.Nifti1Image(values, image.affine)
        values = np.asarray(resample_onto(plain, volume.source, order=0).dataobj, np.float32)
    lesion: NDArray[np.bool_] = np.asarray(values != 0)
    return volume.from_source(lesion)


def _parse_labels(case: Case, placement: GridPlacement) -> NDArray[np.bool_]:
    depth = placement.shape[2]
    if case.slice_labels == "0":
        return np.zeros(depth, bool)
    if len(case.slice_labels) != depth:
        raise CohortError(
            f"patient {case.patient}: {len(case.slice_labels)} slice_labels for {depth} axial "
            "slices: give one digit a slice"
        )
    return np.array([digit == "1" for digit in case.slice_labels])
