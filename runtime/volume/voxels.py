"""Voxels of an image as float32, read in slabs: no second copy of a volume is held."""

import zlib
from collections.abc import Iterator
from gzip import BadGzipFile
from io import BytesIO
from typing import Any

import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.openers import ImageOpener
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray

from ..errors import QUOTED, VolumeError, one_line
from .limits import LIMITS, Limits, check_claim
from .slabs import slabs

# Padding that writers leave behind the voxels; less than a slice.
_TRAILING_BYTES = 2**16
_UNREADABLE = (EOFError, OSError, OverflowError, ValueError, zlib.error)


def read_values(image: SpatialImage, name: str, limits: Limits = LIMITS) -> NDArray[np.float32]:
    """Voxels as float32, with the header's scale factors applied.

    Raises
    ------
    VolumeError
        If they are not real numbers, not finite, not all there, or too many.
    """
    check_claim(image, name, limits)
    try:
        values = np.empty(image.shape, np.float32, order="F")
    except (MemoryError, ValueError) as error:
        raise VolumeError(f"{name} claims shape {image.shape}: too large for memory") from error
    fill(values, image, name)
    return values


def fill(out: NDArray[np.float32], image: SpatialImage, name: str) -> None:
    """Read all voxels, with the header's scale factors applied.

    Parameters
    ----------
    out : of the image's shape, in whatever memory layout
    name : of the image in messages

    Raises
    ------
    VolumeError
        If they are not real numbers, not finite, not all there, or fewer than there are.
    """
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind not in "biuf":
        raise VolumeError(f"{name} holds {kind} voxels: give one real value a voxel")
    try:
        with np.errstate(all="ignore"):
            for slab, values in _pieces(image.dataobj, tuple(image.shape)):
                if not np.isfinite(values).all():
                    raise VolumeError(
                        f"{name} holds NaN or infinite values: replace them, for instance by 0"
                    )
                out[slab] = values
    except VolumeError:
        raise
    except _UNREADABLE as error:
        raise VolumeError(f"{name} is truncated or damaged: {one_line(error, QUOTED)}") from error
    except MemoryError as error:
        raise VolumeError(f"{name} claims shape {image.shape}: too large for memory") from error


def _pieces(voxels: Any, shape: tuple[int, ...]) -> Iterator[tuple[Any, NDArray[np.float32]]]:
    """The slabs of an image, and where they belong."""
    if isinstance(voxels, np.ndarray) and len(shape) >= 3:
        for slab in slabs(shape):
            yield slab, np.asarray(voxels[slab], np.float32)
    elif type(voxels) is ArrayProxy and voxels.order == "F" and isinstance(voxels.file_like, str):
        # Not through the proxy: for each slab, it would inflate a file from its beginning.
        with ImageOpener(voxels.file_like) as file:
            file.seek(voxels.offset)
            for slab in slabs(shape):
                yield slab, _read(file, voxels, _extent(slab, shape))
            _check_end(file)
    else:
        yield ..., np.asarray(voxels, dtype=np.float32)


def _extent(slab: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(len(range(n)[part]) for part, n in zip(slab, shape, strict=True))


def _read(file: ImageOpener, proxy: ArrayProxy, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The next voxels of a file, scaled as the library does."""
    wanted = int(np.prod(shape, dtype=np.int64)) * proxy.dtype.itemsize
    raw = file.read(wanted)
    if len(raw) < wanted:
        raise EOFError(f"{wanted - len(raw)} bytes of a slab are missing")
    spec = (shape, proxy.dtype, 0, proxy.slope, proxy.inter)
    return np.asarray(ArrayProxy(BytesIO(raw), spec), dtype=np.float32)


def _check_end(file: ImageOpener) -> None:
    """Find a file to end behind its voxels; a compressed one, to be intact."""
    try:
        beyond = len(file.read(_TRAILING_BYTES + 1))
    except BadGzipFile as error:
        if "Not a gzipped file" in str(error):  # what follows the compressed data
            return
        raise
    if beyond > _TRAILING_BYTES:
        raise EOFError("it goes on behind the voxels that its header claims")
