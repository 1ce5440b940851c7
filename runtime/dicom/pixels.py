"""Stored pixels: what a file claims, whether it can be true, and the numbers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import VolumeError
from ..util.optional import require
from .headers import UNREADABLE, Header
from .planes import numbers

# Compressed pixels may claim this many times the file's size, and this much in any case.
_EXPANSION, _HARMLESS_BYTES = 200, 16 * 2**20
_DECOMPRESS = "decompress the series (dcmdjpeg, or gdcmconv --raw)"


@dataclass(frozen=True)
class Stored:
    """How the pixels of a file are stored."""

    rows: int  # pixels down
    columns: int  # pixels across
    allocated: int  # bits a pixel
    bits: int  # of these that are used
    signed: bool  # whether numbers may be negative

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """The integer type that holds them."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")


def stored(header: Header, frames: int) -> Stored:
    """How the pixels of a file are stored.

    Raises
    ------
    VolumeError
        If they are not grey values, could not all be in the file, or cannot be decoded here.
    """
    path = header.path
    photometric = header.text("PhotometricInterpretation")
    if photometric == "MONOCHROME1":
        # Whether values or only their display are inverted is not told: nothing is guessed.
        raise VolumeError(
            f"{path} is MONOCHROME1, which shows high values dark: convert it to MONOCHROME2"
        )
    if photometric != "MONOCHROME2" or _whole(header, "SamplesPerPixel") != 1:
        raise VolumeError(f"{path} is not monochrome: give the grey images of the scanner")
    rows, columns = _whole(header, "Rows"), _whole(header, "Columns")
    allocated, bits = _whole(header, "BitsAllocated"), _whole(header, "BitsStored")
    if min(rows, columns) < 1:
        raise VolumeError(f"{path} claims {rows} x {columns} pixels: it holds no image")
    used = allocated in (8, 16, 32) and 1 <= bits <= allocated
    if not used or _whole(header, "HighBit") != bits - 1:
        raise VolumeError(f"{path} stores pixels in {bits} of {allocated} bits: convert it first")
    form = Stored(rows, columns, allocated, bits, _whole(header, "PixelRepresentation") == 1)
    _check_transfer(header, frames * rows * columns * allocated // 8)
    return form


def decode(header: Header, form: Stored, frames: int) -> NDArray[np.integer]:
    """The stored numbers of a file: (frames, rows, columns), ``form.dtype``.

    Raises
    ------
    VolumeError
        If they are not all there.
    """
    pixels = require("pydicom.pixels", "dicom")
    try:
        raw = np.asarray(pixels.pixel_array(header.path, raw=True))
        # Bits that are not in use, which may be anything, pydicom has dealt with.
        raw = raw.reshape(frames, form.rows, form.columns).astype(form.dtype, copy=False)
    except UNREADABLE as error:
        repair = "copy it again from its source"
        if header.dataset.file_meta.TransferSyntaxUID.is_compressed:
            repair += f", or {_DECOMPRESS}"
        raise VolumeError(
            f"{header.path}: its pixels are truncated or damaged: {repair}"
        ) from error
    return raw


def _check_transfer(header: Header, claimed: int) -> None:
    """Refuse pixels that cannot be decoded, or ``claimed`` bytes that cannot be in the file."""
    path, size = header.path, header.path.stat().st_size
    uid = header.dataset.file_meta.get("TransferSyntaxUID")
    if uid is None or not uid.is_transfer_syntax:
        raise VolumeError(f"{path} does not say how it is encoded (TransferSyntaxUID): correct it")
    if not uid.is_compressed:
        if claimed > size:
            raise VolumeError(
                f"{path} claims {claimed} bytes of pixels and has {size} in all: it is truncated; "
                "copy it again from its source"
            )
        return
    if claimed > max(_HARMLESS_BYTES, _EXPANSION * size):
        raise VolumeError(f"{path} claims {claimed} bytes of pixels in {size}: it is damaged")
    try:
        able = require("pydicom.pixels", "dicom").get_decoder(uid).is_available
    except NotImplementedError:
        able = False
    if not able:
        raise VolumeError(
            f"{path} is compressed as {uid.name}, which cannot be decoded here: {_DECOMPRESS}, or "
            "run pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        )


def _whole(header: Header, keyword: str) -> int:
    return int(numbers(header.dataset, keyword, header, 1)[0])
