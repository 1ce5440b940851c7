"""A DICOM series of MR images as one volume."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import VolumeError
from .headers import Header, choose_series, find_headers, silenced_pydicom
from .pixels import Stored, decode, stored
from .planes import Plane, planes_of
from .stack import affine, in_order

if TYPE_CHECKING:
    from pydicom import Dataset


@dataclass(frozen=True)
class Series:
    """One stack of MR slices.

    ``image``: voxel (i, j, k) is column i and row j of slice k, counted along the slices' normal;
    float32, or the stored integers where there is nothing to rescale; affine in mm, RAS+.
    ``planes``: where each slice comes from, in the order of k.
    ``notes``: what was ignored, a line each.
    """

    image: nib.Nifti1Image
    planes: tuple[Plane, ...]
    notes: tuple[str, ...] = ()

    @property
    def enhanced(self) -> bool:
        """Whether all slices are frames of one file."""
        return self.planes[0].header.enhanced

    @property
    def references(self) -> "tuple[Dataset, ...]":
        """The source images without pixels, in the order of k; the one of an enhanced file."""
        used = self.planes[:1] if self.enhanced else self.planes
        return tuple(plane.header.dataset for plane in used)

    @property
    def frames(self) -> tuple[int, ...]:
        """For each slice, the number of its frame in its file, from 1."""
        return tuple(plane.frame for plane in self.planes)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of :attr:`references`."""
        used = self.planes[:1] if self.enhanced else self.planes
        return tuple(plane.header.path for plane in used)

    @property
    def uid(self) -> str:
        """The SeriesInstanceUID."""
        return self.planes[0].header.text("SeriesInstanceUID")


def read_series(path: Path, series_uid: str | None = None) -> Series:
    """Read the MR series of a folder, searched at any depth, or an enhanced multi-frame file.

    Slices are sorted by their positions along the normal. Rescale slope and intercept are applied.
    MONOCHROME1 is refused.

    Parameters
    ----------
    series_uid : which series, where there are several: its SeriesInstanceUID, or an end of it that
        no other has

    Raises
    ------
    VolumeError
        If there is not exactly one evenly spaced stack of grey MR images that can be decoded.
    MissingExtraError
        If pydicom is not installed.
    """
    with silenced_pydicom():
        headers, ignored = find_headers(path)
        chosen, others = choose_series(headers, series_uid, path)
        if others:
            ignored.append(f"{others} MR images of other series")
        if any(header.enhanced for header in chosen) and len(chosen) > 1:
            raise VolumeError(
                f"{path} holds {len(chosen)} files of one series, of which some hold many frames: "
                "name one multi-frame file"
            )
        planes = in_order([plane for header in chosen for plane in planes_of(header)], path)
        values = _values(planes, path)
        image = nib.Nifti1Image(values, affine(planes))
    # The image's affine stays float64; the header's forms have fewer digits.
    image.set_sform(image.affine, code="scanner", update_affine=False)
    image.set_qform(image.affine, code="scanner", update_affine=False)
    image.header.set_xyzt_units("mm")
    notes = (f"ignored: {', '.join(ignored)}",) if ignored else ()
    return Series(image, tuple(planes), notes)


def _values(planes: Sequence[Plane], where: Path) -> NDArray[np.generic]:
    """The voxels, (columns, rows, slices)."""
    frames: dict[Path, int] = {}
    headers: dict[Path, Header] = {}
    for plane in planes:
        headers[plane.header.path] = plane.header
        frames[plane.header.path] = frames.get(plane.header.path, 0) + 1
    # Every claim is checked before any pixel is read.
    forms = {file: stored(header, frames[file]) for file, header in headers.items()}
    sizes = {(form.rows, form.columns) for form in forms.values()}
    if len(sizes) > 1:
        raise VolumeError(
            f"{where} holds images of different sizes: give one series of one resolution"
        )
    ((rows, columns),) = sizes
    try:
        values = np.empty((columns, rows, len(planes)), _type(planes, list(forms.values())))
    except MemoryError as error:
        raise VolumeError(f"{where} claims more pixels than memory holds") from error
    decoded: dict[Path, NDArray[np.integer]] = {}
    for k, plane in enumerate(planes):
        file = plane.header.path
        if file not in decoded:
            # One file's pixels at a time: those of an enhanced file are all the planes'.
            decoded = {file: decode(plane.header, forms[file], frames[file])}
        pixels = decoded[file][plane.frame - 1].T
        if values.dtype.kind == "f" and (plane.slope, plane.intercept) != (1, 0):
            values[..., k] = pixels * plane.slope + plane.intercept
        else:
            values[..., k] = pixels
    if not np.isfinite(values).all():
        raise VolumeError(f"{where}: RescaleSlope makes values infinite; correct the header")
    return values


def _type(planes: Sequence[Plane], forms: Sequence[Stored]) -> np.dtype[np.generic]:
    """The stored type where all share it and nothing is rescaled, else float32."""
    kinds = {form.dtype for form in forms}
    plain = all((plane.slope, plane.intercept) == (1, 0) for plane in planes)
    return np.dtype(kinds.pop()) if plain and len(kinds) == 1 else np.dtype(np.float32)
