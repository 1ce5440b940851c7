"""Slices that arrive one by one, as a scanner makes them; results come back as they finish."""

from __future__ import annotations

import operator
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import ArrayLike, NDArray

from .bundle.bundle import Manifest
from .errors import VolumeError
from .method.process import Place, Slice
from .results import SliceResult
from .volume.grid import Grid, Measured, Placement, from_grid, measure, shows_head, slice_to_grid
from .volume.reader import read_volume
from .volume.slicing import names_of

if TYPE_CHECKING:
    from .segmenter import Segmenter


Float32 = NDArray[np.float32]
_LEADS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1)}
_WAIT_S = 0.05
_SMALLEST_MM, _LARGEST_MM = 0.01, 100.0
_END = object()


@dataclass(frozen=True)
class StreamedSlice:
    """``index``: as it was handed over; ``result``: what was found, None where the slice shows too
    little of a head; ``mask``: uint8, 0 or 1, and ``anomaly_map``: float32, in the axes and shape
    of the slice."""

    index: int
    result: SliceResult | None
    mask: NDArray[np.uint8]
    anomaly_map: Float32


@dataclass(frozen=True)
class HeadMeasure:
    """What a volume says of the slices to come: ``found``: on its intensities and where the head
    is; ``shape``, ``pixel_mm``: of its axial slices, canonical (X, Y), which theirs must be;
    ``slice_mm``: from one to the next, 0 where that is not known."""

    found: Measured
    shape: tuple[int, int]
    pixel_mm: tuple[float, float]
    slice_mm: float = 0.0


def measure_head(images: Sequence[SpatialImage], manifest: Manifest) -> HeadMeasure:
    """See :meth:`anofpdm.Segmenter.measure`."""
    volume = read_volume(list(images), names_of(images), len(manifest.modalities))
    shape, mm = volume.data.shape, volume.voxel_mm
    found = measure(volume.data, manifest.grid)
    return HeadMeasure(found, (shape[1], shape[2]), (mm[0], mm[1]), float(mm[2]))


@dataclass(frozen=True)
class Axes:
    """Where the two axes of an image lead, in the patient.

    ``names``: ``RA`` for the canonical ones (to the right, to the front), ``PL`` for the rows and
    columns of an axial DICOM image.
    """

    names: str

    def __post_init__(self) -> None:
        axes = [_LEADS.get(one, (-1, 0))[0] for one in str(self.names)]
        if sorted(axes) != [0, 1]:
            raise VolumeError(
                f"axes {self.names!r}: give two letters, where rows and columns lead: RA, or PL"
            )

    def canonical(self, image: Float32) -> Float32:
        """(..., H, W) -> (..., X, Y)."""
        order = [_LEADS[one] for one in self.names]
        turned = image[..., :: order[0][1], :: order[1][1]]
        return turned if order[0][0] == 0 else np.swapaxes(turned, -1, -2)

    def back(self, image: Float32) -> Float32:
        """(X, Y) -> (H, W)."""
        order = [_LEADS[one] for one in self.names]
        turned = image if order[0][0] == 0 else np.swapaxes(image, -1, -2)
        return turned[..., :: order[0][1], :: order[1][1]]


class Arrivals:
    """Slices that a thread takes from an iterator, so that whoever waits for them need not stop.

    Parameters
    ----------
    slices : yields (index, image); its errors are raised where slices are taken
    room : how many may be waiting
    """

    def __init__(self, slices: Iterable[tuple[int, ArrayLike]], room: int) -> None:
        self._waiting: queue.Queue[object] = queue.Queue(room)
        self._closed = threading.Event()
        threading.Thread(target=self._fetch, args=(slices,), daemon=True).start()

    def _fetch(self, slices: Iterable[tuple[int, ArrayLike]]) -> None:
        last: object = _END
        try:
            for item in slices:
                if not self._put(_own(item)):
                    return
        except BaseException as error:  # raised again by take()
            last = error
        self._put(last)

    def _put(self, item: object) -> bool:
        while not self._closed.is_set():
            try:
                self._waiting.put(item, timeout=_WAIT_S)
            except queue.Full:
                continue
            return True
        return False

    def take(self, wait: bool) -> object:
        """(index, image), or ``_END`` after the last.

        Raises
        ------
        queue.Empty
            If none is there; after a moment, if ``wait``.
        """
        item = self._waiting.get(timeout=_WAIT_S) if wait else self._waiting.get_nowait()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Take no more."""
        self._closed.set()


def _own(item: object) -> object:
    """With a copy of the image: the source may use its memory again for the next one."""
    index: Any
    image: Any
    try:
        index, image = item  # type: ignore[misc]
        return index, np.array(image)
    except (TypeError, ValueError):
        return item  # whoever reads it says what is wrong


class Stream:
    """See :meth:`anofpdm.Segmenter.segment_stream`."""

    def __init__(
        self,
        segmenter: Segmenter,
        slices: Iterable[tuple[int, ArrayLike]],
        pixel_mm: tuple[float, float],
        slice_mm: float | None,
        axes: str,
        measured: HeadMeasure | None,
        settle: int | None,
        every_slice: bool,
        cancel: threading.Event | None,
    ) -> None:
        try:
            rows_mm, columns_mm = map(float, pixel_mm)
        except (TypeError, ValueError):
            raise VolumeError(f"pixel_mm is {pixel_mm!r}: give two lengths in mm") from None
        if not all(_SMALLEST_MM <= mm <= _LARGEST_MM for mm in (rows_mm, columns_mm)):
            raise VolumeError(f"pixel_mm is {pixel_mm}: no head has pixels of that size")
        try:
            apart = 0.0 if slice_mm is None else float(slice_mm)
        except (TypeError, ValueError):
            raise VolumeError(f"slice_mm is {slice_mm!r}: give a length in mm") from None
        if slice_mm is not None and not _SMALLEST_MM <= apart <= _LARGEST_MM:
            raise VolumeError(f"slice_mm is {slice_mm}: no head has slices that far apart")
        if measured is not None and not isinstance(measured, HeadMeasure):
            raise VolumeError("measured is none of Segmenter.measure()")
        if settle is not None and settle < 1:
            raise VolumeError(f"settle is {settle}: give at least 1")
        self._segmenter, self._axes, self._given = segmenter, Axes(axes), slices
        first = _LEADS[axes[0]][0]
        self._pixel_mm = (columns_mm, rows_mm) if first else (rows_mm, columns_mm)
        if measured and not np.allclose(measured.pixel_mm, self._pixel_mm, rtol=0.01):
            raise VolumeError(
                f"what was measured has pixels of {measured.pixel_mm} mm, the slices have "
                f"{self._pixel_mm}: measure a volume of the same field of view"
            )
        self._slice_mm = apart or (measured.slice_mm if measured else 0.0)
        wide = segmenter.setup.calibration.neighbours_mm
        if wide and not self._slice_mm:
            raise VolumeError(
                f"preset {segmenter.setup.preset} averages over slices nearer than {wide:g} mm: "
                "give slice_mm, from one slice to the next"
            )
        self._measured, self._settle, self._every_slice = measured, settle, every_slice
        self._cancelled = cancel or threading.Event()
        self._shape: tuple[int, ...] | None = measured.shape if measured else None
        self._seen: set[int] = set()
        self._blank: deque[StreamedSlice] = deque()
        self._under_way = 0
        self._wrong: Exception | None = None

    @property
    def _grid(self) -> Grid:
        return self._segmenter.bundle.manifest.grid

    def results(self) -> Iterator[StreamedSlice]:
        """As they finish."""
        arrivals = Arrivals(self._given, 2 * self._segmenter.backend.slots)
        try:
            for result in self._segmenter.analyse(
                self._slices(arrivals),
                self._cancelled.is_set,
                done=self._done,
            ):
                yield self._back(result)
                yield from self._blanks()
                if self._cancelled.is_set():
                    return
            if not self._cancelled.is_set():
                yield from self._blanks()
                if self._wrong:
                    raise self._wrong
        finally:
            arrivals.close()

    def _done(self) -> None:
        self._under_way -= 1

    def _slices(self, arrivals: Arrivals) -> Iterator[Slice | None]:
        """What has arrived, on the grid; None while nothing has."""
        early: list[tuple[int, Float32]] = []
        while not self._cancelled.is_set():
            try:
                item = arrivals.take(wait=not self._under_way)
                if item is not _END:
                    early.append(self._read(item))
            except queue.Empty:
                yield None
                continue
            except Exception as error:  # raised when what came before is done
                self._wrong, item = error, _END
            settled = item is _END or (self._settle is not None and len(early) >= self._settle)
            if self._measured is None and early and settled:
                try:
                    found = measure(np.stack([image for _, image in early], -1), self._grid)
                except VolumeError as error:
                    self._wrong = self._wrong or error  # what was wrong first is told
                    return
                x, y = early[0][1].shape[1:]
                self._measured = HeadMeasure(found, (x, y), self._pixel_mm)
            if self._measured is not None:
                for index, image in early:
                    yield from self._on_grid(index, image, self._measured.found)
                early.clear()
            if item is _END:
                return

    def _read(self, item: object) -> tuple[int, Float32]:
        """Check a slice, and turn it to canonical axes."""
        channels = len(self._segmenter.bundle.manifest.modalities)
        number: Any
        given: Any
        try:
            number, given = item  # type: ignore[misc]
            index, image = operator.index(number), np.asarray(given)
        except (TypeError, ValueError) as error:
            raise VolumeError(
                f"a slice must be (index, image), not {type(item)}: {error}"
            ) from error
        if image.dtype.kind not in "biuf":
            raise VolumeError(f"slice {index} holds {image.dtype} values: give real numbers")
        image = np.asarray(image[None] if image.ndim == 2 else image, np.float32)
        if image.ndim != 3 or len(image) != channels or not np.isfinite(image).all():
            raise VolumeError(
                f"slice {index} has shape {np.shape(given)}: give (H, W) or ({channels}, H, W), "
                "without NaN"
            )
        if index in self._seen or index < 0:
            raise VolumeError(f"slice {index} has come before, or is below 0: number them")
        turned = np.ascontiguousarray(self._axes.canonical(image))
        if self._shape not in (None, turned.shape[1:]):
            raise VolumeError(
                f"slice {index} has another shape than those before, or than what was measured"
            )
        self._shape = turned.shape[1:]
        self._seen.add(index)
        return index, turned

    def _on_grid(self, index: int, image: Float32, measured: Measured) -> Iterator[Slice]:
        if shows_head(image, self._pixel_mm, self._grid, measured):
            self._under_way += 1
            x0 = slice_to_grid(image, self._pixel_mm, self._grid, measured)
            yield Slice(index, x0, at=Place(index, self._slice_mm))
            return
        nothing = self._axes.back(np.zeros(image.shape[1:], np.float32))
        self._blank.append(StreamedSlice(index, None, nothing.astype(np.uint8), nothing))

    def _blanks(self) -> Iterator[StreamedSlice]:
        while self._blank:
            yield self._blank.popleft()

    def _back(self, result: SliceResult) -> StreamedSlice:
        assert self._measured
        found = result.unhealthy or self._every_slice
        center, levels = self._measured.found.center, np.array([0])
        place = Placement((*self._measured.shape, 1), self._pixel_mm, center, levels)
        marked, H = (
            np.ascontiguousarray(self._axes.back(from_grid(plane[None], self._grid, place)[..., 0]))
            for plane in (result.mask & found, result.H)
        )
        return StreamedSlice(result.key, result, (marked >= 0.5).astype(np.uint8), H)
