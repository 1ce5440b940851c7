"""Slices that arrive one by one, as a scanner makes them; results come back as they finish."""

import operator
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import ArrayLike, NDArray

from .bundle.bundle import Manifest
from .errors import VolumeError
from .method.process import Slice, SlicePosition
from .pipeline import Pipeline
from .results import SliceResult
from .volume.grid import (
    GridPlacement,
    IntensityStats,
    from_grid,
    measure,
    shows_head,
    slice_to_grid,
)
from .volume.reader import read_volume
from .volume.slicing import names_of

Float32 = NDArray[np.float32]
# Where a letter leads: canonical axis (0 to the right, 1 to the front) and direction.
_DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1)}
_WAIT_S = 0.05
_SMALLEST_MM, _LARGEST_MM = 0.01, 100.0
_END = object()


@dataclass(frozen=True)
class StreamedSlice:
    """A slice that came back; arrays are in the axes and shape of the image that was given."""

    index: int  # as given
    result: SliceResult | None  # None where the slice shows too little of a head
    mask: NDArray[np.uint8]  # (H, W) 0 or 1
    anomaly_map: Float32  # (H, W)


@dataclass(frozen=True)
class HeadMeasurement:
    """What an earlier volume says of slices to come."""

    intensities: IntensityStats  # and where the head is
    shape: tuple[int, int]  # of its axial slices, canonical (X, Y), which theirs must be
    pixel_mm: tuple[float, float]  # of its axial slices, canonical (x, y)
    slice_mm: float = 0.0  # from one slice to the next, 0 where that is not known


def measure_head(images: Sequence[SpatialImage], manifest: Manifest) -> HeadMeasurement:
    """Measure a volume for slices to come; see :meth:`anofpdm.Segmenter.measure`."""
    volume = read_volume(list(images), names_of(images), len(manifest.modalities))
    shape, mm = volume.data.shape, volume.voxel_mm
    intensities = measure(volume.data, manifest.grid)
    return HeadMeasurement(intensities, (shape[1], shape[2]), (mm[0], mm[1]), float(mm[2]))


@dataclass(frozen=True)
class Axes:
    """Where the two axes of an image lead in the patient: ``RA`` for the canonical ones (to the
    right, to the front), ``PL`` for the rows and columns of an axial DICOM image."""

    names: str

    def __post_init__(self) -> None:
        axes = [_DIRECTIONS.get(letter, (-1, 0))[0] for letter in str(self.names)]
        if sorted(axes) != [0, 1]:
            raise VolumeError(
                f"axes {self.names!r}: give two letters, where rows and columns lead: RA, or PL"
            )

    @property
    def rows_lead_sideways(self) -> bool:
        """Whether the first axis is the canonical first one."""
        return _DIRECTIONS[self.names[0]][0] == 0

    def _flipped(self, image: Float32) -> Float32:
        rows, columns = (_DIRECTIONS[letter][1] for letter in self.names)
        return image[..., ::rows, ::columns]

    def canonical(self, image: Float32) -> Float32:
        """(..., H, W) -> (..., X, Y)."""
        image = self._flipped(image)
        return image if self.rows_lead_sideways else np.swapaxes(image, -1, -2)

    def original(self, image: Float32) -> Float32:
        """(X, Y) -> (H, W)."""
        image = image if self.rows_lead_sideways else np.swapaxes(image, -1, -2)
        return self._flipped(image)


class Arrivals:
    """Slices that a thread fetches from an iterator, so that those under way need not stop.

    Parameters
    ----------
    slices : yields (index, image); its errors are raised by :meth:`next`
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
                if not self._put(_copied(item)):
                    return
        except BaseException as error:  # raised again by next()
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

    def next(self, wait: bool) -> object:
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
        """Fetch no more."""
        self._closed.set()


def _copied(item: object) -> object:
    """With a copy of the image: the source may use its memory again for the next one."""
    index: Any
    image: Any
    try:
        index, image = item  # type: ignore[misc]
        return index, np.array(image)
    except (TypeError, ValueError):
        return item  # refused when it is read


class Stream:
    """Slices on their way through a pipeline; see :meth:`anofpdm.Segmenter.segment_stream`."""

    def __init__(
        self,
        pipeline: Pipeline,
        slices: Iterable[tuple[int, ArrayLike]],
        pixel_mm: tuple[float, float],
        slice_mm: float | None,
        axes: str,
        measurement: HeadMeasurement | None,
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
            spacing_mm = 0.0 if slice_mm is None else float(slice_mm)
        except (TypeError, ValueError):
            raise VolumeError(f"slice_mm is {slice_mm!r}: give a length in mm") from None
        if slice_mm is not None and not _SMALLEST_MM <= spacing_mm <= _LARGEST_MM:
            raise VolumeError(f"slice_mm is {slice_mm}: no head has slices that far apart")
        if measurement is not None and not isinstance(measurement, HeadMeasurement):
            raise VolumeError("measurement must come from Segmenter.measure()")
        if settle is not None and settle < 1:
            raise VolumeError(f"settle is {settle}: give at least 1")
        self._pipeline, self._axes, self._source = pipeline, Axes(axes), slices
        sideways = self._axes.rows_lead_sideways
        self._pixel_mm = (rows_mm, columns_mm) if sideways else (columns_mm, rows_mm)
        if measurement and not np.allclose(measurement.pixel_mm, self._pixel_mm, rtol=0.01):
            raise VolumeError(
                f"the measured volume has pixels of {measurement.pixel_mm} mm, the slices have "
                f"{self._pixel_mm}: measure a volume of the same field of view"
            )
        self._slice_mm = spacing_mm or (measurement.slice_mm if measurement else 0.0)
        width_mm = pipeline.plan.refinement.neighbours_mm
        if width_mm and not self._slice_mm:
            raise VolumeError(
                f"preset {pipeline.plan.preset} averages over slices nearer than {width_mm:g} mm: "
                "give slice_mm, from one slice to the next"
            )
        self._measurement, self._settle, self._every_slice = measurement, settle, every_slice
        self._cancelled = cancel or threading.Event()
        self._grid = pipeline.bundle.manifest.grid
        self._shape: tuple[int, ...] | None = measurement.shape if measurement else None
        self._seen: set[int] = set()
        self._blank: deque[StreamedSlice] = deque()
        self._under_way = 0
        self._error: Exception | None = None

    def results(self) -> Iterator[StreamedSlice]:
        """Slices as they finish."""
        arrivals = Arrivals(self._source, 2 * self._pipeline.backend.slots)
        try:
            slices = self._slices(arrivals)
            for result in self._pipeline.run(slices, self._cancelled.is_set, self._processed):
                yield self._original(result)
                yield from self._blanks()
                if self._cancelled.is_set():
                    return
            if not self._cancelled.is_set():
                yield from self._blanks()
                if self._error:
                    raise self._error
        finally:
            arrivals.close()

    def _processed(self) -> None:
        self._under_way -= 1

    def _slices(self, arrivals: Arrivals) -> Iterator[Slice | None]:
        """The slices that have arrived, on the grid; None while none has."""
        early: list[tuple[int, Float32]] = []
        while not self._cancelled.is_set():
            try:
                item = arrivals.next(wait=not self._under_way)
                if item is not _END:
                    early.append(self._checked(item))
            except queue.Empty:
                yield None
                continue
            except Exception as error:  # raised when the slices before it are done
                self._error, item = error, _END
            settled = item is _END or (self._settle is not None and len(early) >= self._settle)
            if self._measurement is None and early and settled:
                try:
                    stats = measure(np.stack([image for _, image in early], -1), self._grid)
                except VolumeError as error:
                    self._error = self._error or error  # the first error counts
                    return
                x, y = early[0][1].shape[1:]
                self._measurement = HeadMeasurement(stats, (x, y), self._pixel_mm)
            if self._measurement is not None:
                for index, image in early:
                    yield from self._on_grid(index, image, self._measurement.intensities)
                early.clear()
            if item is _END:
                return

    def _checked(self, item: object) -> tuple[int, Float32]:
        """Check a slice, and turn it to canonical axes."""
        channels = len(self._pipeline.bundle.manifest.modalities)
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
        canonical = np.ascontiguousarray(self._axes.canonical(image))
        if self._shape not in (None, canonical.shape[1:]):
            raise VolumeError(
                f"slice {index} has another shape than those before, or than the measured volume"
            )
        self._shape = canonical.shape[1:]
        self._seen.add(index)
        return index, canonical

    def _on_grid(self, index: int, image: Float32, stats: IntensityStats) -> Iterator[Slice]:
        if shows_head(image, self._pixel_mm, self._grid, stats):
            self._under_way += 1
            x0 = slice_to_grid(image, self._pixel_mm, self._grid, stats)
            yield Slice(index, x0, at=SlicePosition(index, self._slice_mm))
            return
        zeros = self._axes.original(np.zeros(image.shape[1:], np.float32))
        self._blank.append(StreamedSlice(index, None, zeros.astype(np.uint8), zeros))

    def _blanks(self) -> Iterator[StreamedSlice]:
        while self._blank:
            yield self._blank.popleft()

    def _original(self, result: SliceResult) -> StreamedSlice:
        """A result in the axes and pixels of the image that was given."""
        assert self._measurement
        stats, shape = self._measurement.intensities, (*self._measurement.shape, 1)
        placement = GridPlacement(shape, self._pixel_mm, stats.center, np.array([0]))
        mask = result.mask & (result.unhealthy or self._every_slice)
        planes = (from_grid(p[None], self._grid, placement)[..., 0] for p in (mask, result.H))
        marked, H = (np.ascontiguousarray(self._axes.original(plane)) for plane in planes)
        return StreamedSlice(result.key, result, (marked >= 0.5).astype(np.uint8), H)
