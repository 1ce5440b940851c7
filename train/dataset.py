"""Prepared slices with their labels: two memory-mapped files and an index. Needs no torch.

``slices.u8`` is (n, C, size, size) and ``masks.u8`` (n, size, size), both raw uint8;
``slices.json`` describes them. Intensities are quantised in steps of 2/255 of [-1, 1].
"""

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
    """The label and origin of one slice."""

    patient: str  # name of the patient
    level: int  # axial index in the scan, from the feet up
    split: str  # train, val, test or a name of the cohort's
    unhealthy: bool  # whether it shows a lesion
    drawn: bool  # whether it has a reference mask; without one its mask is empty
    slice_mm: float = 0.0  # distance to the next axial index, 0 where unknown

    def __post_init__(self) -> None:
        kinds = (str, int, str, bool, bool, float)
        for value, kind in zip(vars(self).values(), kinds, strict=True):
            if not isinstance(value, kind):
                raise TypeError(f"a slice has {value!r} where {kind.__name__} is expected")
        if not 0 <= self.slice_mm < math.inf:
            raise ValueError(f"slices cannot be {self.slice_mm} mm apart")

    def follows(self, other: "SliceRecord") -> bool:
        """Whether this record, the next one after ``other`` in a set, is of the same scan.

        Slices of a scan are listed from the feet up, and a patient may have several scans.
        """
        same_patient = (self.patient, self.slice_mm) == (other.patient, other.slice_mm)
        return same_patient and self.level > other.level


@dataclass(frozen=True)
class SliceSet:
    """Labelled slices on a model's grid; pixels are read from disk when they are used."""

    modalities: tuple[str, ...]  # names of the C channels
    grid: Grid  # of the slices
    source: Mapping[str, Any]  # cohort and seed that they were prepared from, JSON values
    records: tuple[SliceRecord, ...]  # (n,) labels
    rows: tuple[int, ...]  # (n,) position of each slice in the files
    _slices: NDArray[np.uint8]  # (rows, C, size, size)
    _masks: NDArray[np.uint8]  # (rows, size, size)

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
        """All slices for the forward process: keys are positions in this set, which the noise
        depends on; volumes are scans, of which a patient may have several."""
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
        """The reference mask of slice ``index``: (size, size) bool."""
        return np.asarray(self._masks[self.rows[index]], dtype=bool)

    def split(self, name: str) -> "SliceSet":
        """The slices of one split.

        Raises
        ------
        CohortError
            If there are none.
        """
        keep = [i for i, record in enumerate(self.records) if record.split == name]
        if not keep:
            splits = sorted({record.split for record in self.records})
            raise CohortError(f"no slices in split {name!r}: there are {', '.join(splits)}")
        return self.take(keep)

    def take(self, keep: Sequence[int]) -> "SliceSet":
        """The slices at these positions."""
        return replace(
            self,
            records=tuple(self.records[i] for i in keep),
            rows=tuple(self.rows[i] for i in keep),
        )

    def require(self, modalities: tuple[str, ...], grid: Grid) -> "SliceSet":
        """This set, if it has these modalities, in this order, on this grid.

        Raises
        ------
        CohortError
            If it has not.
        """
        if (self.modalities, self.grid) != (modalities, grid):
            raise CohortError(
                f"the slices have {', '.join(self.modalities)} on {self.grid}, the bundle needs "
                f"{', '.join(modalities)} on {grid}: prepare them again"
            )
        return self

    def require_spacing(self, neighbours_mm: float) -> None:
        """Check that the distance between slices is known, if neighbours are used.

        Parameters
        ----------
        neighbours_mm : width of the window of neighbouring slices, 0 for none

        Raises
        ------
        CohortError
            If it is unknown, as in sets that were prepared by an earlier version.
        """
        if neighbours_mm and not all(record.slice_mm for record in self.records):
            raise CohortError(
                "the slices have no slice distance, which averaging over neighbours needs: "
                "prepare them again"
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
    """Create a set in ``folder``. The index is written last: an incomplete set has none."""
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
        If the folder has no set, or a damaged one.
    """
    path = folder / INDEX
    if not path.is_file():
        raise CohortError(f"{folder} has no prepared slices ({INDEX}): run anofpdm-train first")
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
    size, expected = path.stat().st_size, math.prod(shape)
    if size != expected:
        raise CohortError(f"{path} has {size} bytes, not {expected}: prepare the slices again")
    return np.memmap(path, np.uint8, "r", shape=shape)
