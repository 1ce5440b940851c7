"""Prepared slices with their labels: two memory-mapped files and an index.

``slices.u8`` holds (n, C, size, size) and ``masks.u8`` (n, size, size), both uint8 and raw;
``slices.json`` says what they are. Intensities are kept in steps of 2/255 of [-1, 1].
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.errors import CohortError
from anofpdm.runtime.method.process import Slice, SlicePosition
from anofpdm.runtime.util.files import write_json
from anofpdm.runtime.volume.grid import Grid

INDEX, _SLICES, _MASKS = "slices.json", "slices.u8", "masks.u8"
_FORMAT = 1


@dataclass(frozen=True)
class SliceRecord:
    """One slice: its patient, axial index and split; whether it shows a lesion, and whether its
    lesions were drawn (an empty mask says nothing where they were not); ``slice_mm``: how far it is
    to the next axial index, 0 where that is not known."""

    patient: str
    level: int
    split: str
    unhealthy: bool
    drawn: bool
    slice_mm: float = 0.0

    def __post_init__(self) -> None:
        kinds = (str, int, str, bool, bool, float)
        for value, kind in zip(vars(self).values(), kinds, strict=True):
            if not isinstance(value, kind):
                raise TypeError(f"a slice has {value!r} where {kind.__name__} is expected")
        if not 0 <= self.slice_mm < math.inf:
            raise ValueError(f"slices cannot be {self.slice_mm} mm apart")

    def follows(self, other: SliceRecord) -> bool:
        """Whether it lies further up in the same scan, if they come one after the other: those of a
        scan come from the feet up, and a patient may have several scans."""
        alike = (self.patient, self.slice_mm) == (other.patient, other.slice_mm)
        return alike and self.level > other.level


@dataclass(frozen=True)
class SliceSet:
    """Labelled slices on a model's grid; pixels stay on disk until they are asked for.

    ``source``: what they were made of, JSON values; ``records``: n of them; ``rows``: (n,) where
    they stand in the files.
    """

    modalities: tuple[str, ...]
    grid: Grid
    source: Mapping[str, Any]
    records: tuple[SliceRecord, ...]
    rows: tuple[int, ...]
    _slices: NDArray[np.uint8]
    _masks: NDArray[np.uint8]

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

    def slices(self) -> Iterator[Slice]:
        """All of them, as the forward process takes them: keys are positions, which is what noise
        depends on; volumes are scans, which a patient may have several of."""
        scan, last = -1, None
        for i, record in enumerate(self.records):
            if last is None or not record.follows(last):
                scan += 1
            last = record
            yield Slice(i, self.x0(i), scan, SlicePosition(record.level, record.slice_mm))

    def x0(self, index: int) -> NDArray[np.float32]:
        """Slice ``index``: (C, size, size) float32 in [-1, 1]."""
        return dequantise(self._slices[self.rows[index]])

    def mask(self, index: int) -> NDArray[np.bool_]:
        """The drawn lesions of slice ``index``: (size, size)."""
        return np.asarray(self._masks[self.rows[index]], dtype=bool)

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

    def take(self, keep: Sequence[int]) -> SliceSet:
        """The slices at these positions."""
        return replace(
            self,
            records=tuple(self.records[i] for i in keep),
            rows=tuple(self.rows[i] for i in keep),
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

    def __init__(self, slices: BinaryIO, masks: BinaryIO) -> None:
        self._slices, self._masks = slices, masks
        self.records: list[SliceRecord] = []

    def add(
        self, record: SliceRecord, x0: NDArray[np.float32], mask: NDArray[np.bool_] | None
    ) -> None:
        """Append one slice: ``x0`` (C, size, size) in [-1, 1], ``mask`` (size, size)."""
        self._slices.write(quantise(x0).tobytes())
        drawn = np.zeros(x0.shape[1:], bool) if mask is None else mask
        self._masks.write(drawn.astype(np.uint8).tobytes())
        self.records.append(record)


@contextmanager
def writing(
    folder: Path, modalities: tuple[str, ...], grid: Grid, source: Mapping[str, Any]
) -> Iterator[SliceWriter]:
    """Create a set in ``folder``; its index is written last, so a broken set is not opened."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    with (folder / _SLICES).open("wb") as slices, (folder / _MASKS).open("wb") as masks:
        writer = SliceWriter(slices, masks)
        yield writer
    index = {
        "format": _FORMAT,
        "source": dict(source),
        "modalities": list(modalities),
        "grid": asdict(grid),
        "slices": [list(vars(record).values()) for record in writer.records],
    }
    write_json(folder / INDEX, index)


def open_sliceset(folder: Path) -> SliceSet:
    """Open a prepared set.

    Raises
    ------
    CohortError
        If the folder holds none, or a damaged one.
    """
    path = folder / INDEX
    if not path.is_file():
        raise CohortError(f"{folder} holds no prepared slices ({INDEX}): run anofpdm-train first")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != _FORMAT:
            raise CohortError(f"{path} has format {index['format']}, this version reads {_FORMAT}")
        modalities, grid = tuple(index["modalities"]), Grid(**index["grid"])
        records = tuple(SliceRecord(*values) for values in index["slices"])
        if not records:
            raise CohortError(f"{path} lists no slices")
        shape = (len(records), len(modalities), grid.size, grid.size)
        slices = _open_raw(folder / _SLICES, shape)
        masks = _open_raw(folder / _MASKS, shape[:1] + shape[2:])
        rows = tuple(range(len(records)))
        return SliceSet(modalities, grid, index["source"], records, rows, slices, masks)
    except CohortError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise CohortError(f"{path} is damaged ({error}): prepare the slices again") from error


def _open_raw(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    size, wanted = path.stat().st_size, math.prod(shape)
    if size != wanted:
        raise CohortError(f"{path} has {size} bytes, not {wanted}: prepare the slices again")
    return np.memmap(path, np.uint8, "r", shape=shape)
