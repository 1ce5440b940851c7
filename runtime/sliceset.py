"""Prepared slices with their labels: two memory-mapped files and an index.

``slices.u8`` holds (n, C, size, size) and ``masks.u8`` (n, size, size), both uint8 and raw;
``slices.json`` says what they are. Intensities are kept in steps of 2/255 of [-1, 1].
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import CohortError
from .files import write_json
from .grid import Grid

_INDEX, _SLICES, _MASKS = "slices.json", "slices.u8", "masks.u8"
_FORMAT = 1


@dataclass(frozen=True)
class SliceRecord:
    """One slice: its patient, its axial index, its split, and whether it shows a lesion."""

    patient: str
    level: int
    split: str
    unhealthy: bool


@dataclass(frozen=True)
class SliceSet:
    """Labelled slices on a model's grid.

    ``raw`` : (n, C, size, size) uint8; ``masks`` : (n, size, size) uint8, 1 where a lesion was
    drawn, None without drawn masks; ``records`` : n of them.
    """

    modalities: tuple[str, ...]
    grid: Grid
    records: tuple[SliceRecord, ...]
    raw: NDArray[np.uint8]
    masks: NDArray[np.uint8] | None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def unhealthy(self) -> NDArray[np.bool_]:
        """(n,) image-level labels."""
        return np.array([record.unhealthy for record in self.records], dtype=bool)

    @property
    def patients(self) -> NDArray[np.str_]:
        """(n,) patient names."""
        return np.array([record.patient for record in self.records])

    def x0(self, index: int) -> NDArray[np.float32]:
        """Slice ``index``: (C, size, size) float32 in [-1, 1]."""
        return dequantise(self.raw[index])

    def split(self, name: str) -> SliceSet:
        """The slices of one split.

        Raises
        ------
        CohortError
            If there are none.
        """
        keep = [i for i, record in enumerate(self.records) if record.split == name]
        if not keep:
            known = sorted({record.split for record in self.records})
            raise CohortError(f"no slices in split {name!r}: there are {', '.join(known)}")
        return self.take(keep)

    def take(self, keep: list[int]) -> SliceSet:
        """The slices at these positions; a contiguous range stays memory-mapped."""
        contiguous = keep == list(range(keep[0], keep[-1] + 1))
        where = slice(keep[0], keep[-1] + 1) if contiguous else np.array(keep)
        return SliceSet(
            self.modalities,
            self.grid,
            tuple(self.records[i] for i in keep),
            self.raw[where],
            None if self.masks is None else self.masks[where],
        )


def dequantise(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """0..255 -> [-1, 1] float32."""
    return np.asarray(raw, np.float32) / np.float32(127.5) - np.float32(1)


def quantise(slices: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[-1, 1] -> 0..255, to the nearest step."""
    steps = np.rint((slices + 1) * np.float32(127.5))
    return np.asarray(np.clip(steps, 0, 255), np.uint8)


class SliceWriter:
    """Appends slices to a set; see :func:`writing`."""

    def __init__(self, slices: BinaryIO, masks: BinaryIO | None) -> None:
        self._slices, self._masks = slices, masks
        self.records: list[SliceRecord] = []

    def add(
        self,
        record: SliceRecord,
        x0: NDArray[np.float32],
        mask: NDArray[np.bool_] | None,
    ) -> None:
        """Append one slice: ``x0`` (C, size, size) in [-1, 1], ``mask`` (size, size)."""
        self._slices.write(quantise(x0).tobytes())
        if self._masks is not None:
            shape = x0.shape[1:]
            drawn = np.zeros(shape, bool) if mask is None else mask
            self._masks.write(drawn.astype(np.uint8).tobytes())
        self.records.append(record)


@contextmanager
def writing(
    folder: Path, modalities: tuple[str, ...], grid: Grid, with_masks: bool
) -> Iterator[SliceWriter]:
    """Create a set in ``folder``; its index is written last, so a broken set is not opened."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _INDEX).unlink(missing_ok=True)
    with (folder / _SLICES).open("wb") as slices, (folder / _MASKS).open("wb") as masks:
        writer = SliceWriter(slices, masks if with_masks else None)
        yield writer
    if not with_masks:
        (folder / _MASKS).unlink()
    index = {
        "format": _FORMAT,
        "modalities": list(modalities),
        "grid": asdict(grid),
        "masks": with_masks,
        "slices": [[r.patient, r.level, r.split, int(r.unhealthy)] for r in writer.records],
    }
    write_json(folder / _INDEX, index)


def open_sliceset(folder: Path) -> SliceSet:
    """Open a prepared set.

    Raises
    ------
    CohortError
        If the folder holds none, or a damaged one.
    """
    path = folder / _INDEX
    if not path.is_file():
        raise CohortError(f"{folder} holds no prepared slices ({_INDEX}): run anofpdm-train first")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != _FORMAT:
            raise CohortError(f"{path} has format {index['format']}, this version reads {_FORMAT}")
        modalities, grid = tuple(index["modalities"]), Grid(**index["grid"])
        records = tuple(SliceRecord(p, z, split, bool(u)) for p, z, split, u in index["slices"])
        if not records:
            raise CohortError(f"{path} lists no slices")
        shape = (len(records), len(modalities), grid.size, grid.size)
        raw = _open_raw(folder / _SLICES, shape)
        masks = _open_raw(folder / _MASKS, shape[:1] + shape[2:]) if index["masks"] else None
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, CohortError):
            raise
        raise CohortError(f"{path} is damaged ({error}): prepare the slices again") from error
    return SliceSet(modalities, grid, records, raw, masks)


def _open_raw(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    size = path.stat().st_size
    if size != np.prod(shape):
        raise CohortError(
            f"{path} has {size} bytes, not {np.prod(shape)}: prepare the slices again"
        )
    return np.memmap(path, np.uint8, "r", shape=shape)
