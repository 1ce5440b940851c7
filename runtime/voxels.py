"""Voxels of an image as float32, read in slabs: no second copy of a volume is held."""

from __future__ import annotations

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

from .errors import VolumeError
from .header import first_line

_SLAB_VOXELS = 2**20
# Padding that writers leave behind the voxels; less than a slice.
_TRAILING_BYTES = 2**16
_UNREADABLE = (EOFError, OSError, OverflowError, ValueError, zlib.error)


def fill(out: NDArray[np.float32], image: SpatialImage, name: str) -> None:
    """Read all voxels, with the header's scale factors applied.

    Parameters
    ----------
    out : of the image's shape, in whatever memory layout
    name : what to call the image in messages

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
            for place, values in _pieces(image.dataobj, tuple(image.shape)):
                if not np.isfinite(values).all():
                    raise VolumeError(
                        f"{name} holds NaN or infinite values: replace them, for instance by 0"
                    )
                out[place] = values
    except VolumeError:
        raise
    except _UNREADABLE as error:
        raise VolumeError(f"{name} is truncated or damaged: {first_line(error)}") from error
    except MemoryError as error:
        raise VolumeError(f"{name} claims shape {image.shape}: too large for memory") from error


def _pieces(voxels: Any, shape: tuple[int, ...]) -> Iterator[tuple[Any, NDArray[np.float32]]]:
    """Slabs, and where they belong."""
    if isinstance(voxels, np.ndarray) and len(shape) >= 3:
        for place in _slabs(shape):
            yield place, np.asarray(voxels[place], np.float32)
    elif type(voxels) is ArrayProxy and voxels.order == "F" and isinstance(voxels.file_like, str):
        # Not through the proxy: for each slab, it would inflate a file from its beginning.
        with ImageOpener(voxels.file_like) as file:
            file.seek(voxels.offset)
            for place in _slabs(shape):
                yield place, _read(file, voxels, _extent(place, shape))
            _check_end(file)
    else:
        yield ..., np.asarray(voxels, dtype=np.float32)


def _slabs(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Parts of an array that follow each other in Fortran order, each contiguous."""
    if len(shape) < 3:
        yield tuple(slice(0, n) for n in shape)
        return
    planes = max(1, _SLAB_VOXELS // max(1, shape[0] * shape[1]))
    for further in np.ndindex(shape[:2:-1]):
        rest = tuple(slice(i, i + 1) for i in reversed(further))
        for first in range(0, shape[2], planes):
            last = min(first + planes, shape[2])
            yield (slice(0, shape[0]), slice(0, shape[1]), slice(first, last), *rest)


def _extent(place: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(len(range(n)[part]) for part, n in zip(place, shape, strict=True))


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
