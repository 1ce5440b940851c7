"""``Segmenter``: load a bundle once, segment many volumes. No files needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import ArrayLike, NDArray

from .backends.base import Backend
from .backends.device import open_device
from .backends.scheduler import Cancelled, never
from .bundle.bundle import DEFAULT, Bundle, open_bundle
from .bundle.options import Setup, resolve
from .errors import SetupError, VolumeError
from .method.process import Slice
from .pipeline import Analysis
from .refine.through_plane import reach
from .results import Segmentation, SliceResult
from .streaming import HeadMeasure, Stream, StreamedSlice, measure_head
from .volume.nifti import mask_image
from .volume.slicing import Head, as_images, numbered, on_grid

_AS_CALIBRATED = Setup()


class Segmenter:
    """Finds anomalies in brain MRI with the network and calibration of a bundle.

    >>> import numpy as np
    >>> from anofpdm import Segmenter
    >>> segmenter = Segmenter.load()  # doctest: +SKIP
    >>> segmenter.segment(np.load("flair.npy"), affine=np.eye(4)).volume_ml  # doctest: +SKIP

    Parameters
    ----------
    bundle : a calibrated bundle
    backend : its network, and where it runs
    setup : which of the bundle's calibrations, and what differs from it
    seed : non-negative; a mask is a function of (volume, bundle, setup, seed)
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        setup: Setup = _AS_CALIBRATED,
        seed: int = 0,
    ) -> None:
        if seed < 0:
            raise SetupError(f"seed must be at least 0, not {seed}")
        self.bundle, self.setup = bundle, resolve(bundle, setup)
        wanted = self.setup.calibration.conditions.precision
        if (wanted == "bf16") != (backend.precision == "bf16"):
            raise SetupError(
                f"preset {self.setup.preset} was calibrated in {wanted}, the backend computes as "
                f"{backend.precision}: take another preset or backend"
            )
        self.backend, self.seed = backend, seed

    @classmethod
    def load(
        cls,
        bundle: Bundle | Path | str | None = None,
        *,
        setup: Setup = _AS_CALIBRATED,
        device: str = "auto",
        threads: int | None = None,
        slots: int | None = None,
        seed: int = 0,
    ) -> Segmenter:
        """Load a bundle (the embedded default unless one is named).

        Parameters
        ----------
        device : see :func:`anofpdm.runtime.backends.device.open_device`; ``segmenter.backend.device`` says
            what was taken
        threads : of the CPU; None for as many as there are cores
        slots : how many slices share the network's batch, None for what suits the device; does not
            change masks on the CPU, nor the loop on a GPU, but there a library may round otherwise

        Raises
        ------
        BundleError
            If the bundle cannot be used, or has no calibration for the set-up.
        DeviceError
            If the device that was asked for cannot be used.
        MissingExtraError
            If a package that it needs is not installed.
        """
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle or DEFAULT))
        precision = resolve(opened, setup).calibration.conditions.precision
        backend = open_device(device, opened, threads=threads, slots=slots, precision=precision)
        return cls(opened, backend, setup=setup, seed=seed)

    def close(self) -> None:
        """Give the device back, as leaving a ``with`` does; a second time does nothing."""
        self.backend.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def segment(
        self,
        images: SpatialImage | Sequence[SpatialImage] | ArrayLike,
        *,
        affine: ArrayLike | None = None,
        names: Sequence[str] | None = None,
        every_slice: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Segmentation:
        """Segment one volume.

        Parameters
        ----------
        images : an image; one image per modality, in the bundle's order; or an array
            (X, Y, Z) or (X, Y, Z, C), any real type and range
        affine : (4, 4), voxels to millimetres in RAS+; for arrays only, and needed there
        names : what to call the images in messages
        every_slice : segment slices that were found healthy, too
        progress : called with the number of slices done and in all

        Raises
        ------
        VolumeError
            If the volume cannot be segmented.
        """
        taken = self._on_grid(as_images(images, affine), names)
        for result in self.analyse(taken.slices(0)):
            taken.results.append(result)
            progress(len(taken.results), len(taken.on_grid))
        return self._finish(taken, every_slice)

    def segment_many(
        self,
        volumes: Iterable[SpatialImage | Sequence[SpatialImage]],
        *,
        every_slice: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[Segmentation]:
        """Segment volumes one after the other, through the same slots: the network's batch stays
        full from one volume to the next.

        Parameters
        ----------
        volumes : each an image, or one image per modality; taken when their turn comes
        progress : called with the number of slices done, and in all volumes taken so far

        Yields
        ------
        Segmentations, in the order of the volumes; the same as one by one

        Raises
        ------
        VolumeError
            If a volume cannot be segmented; those before it are yielded first.
        """
        many = self.segment_each(volumes, every_slice=every_slice, progress=progress)
        for number, found in enumerate(many):
            if isinstance(found, VolumeError):
                raise VolumeError(f"volume {number + 1}: {found}")
            yield found

    def segment_each(
        self,
        volumes: Iterable[SpatialImage | Sequence[SpatialImage] | VolumeError],
        *,
        every_slice: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Iterator[Segmentation | VolumeError]:
        """As :meth:`segment_many`, but what is wrong with a volume is yielded in its place, and the
        others go on; a volume that could not be read is passed on as the error that says so."""
        taken: dict[int, _Taken | VolumeError] = {}
        total = 0

        def slices() -> Iterator[Slice]:
            nonlocal total
            for number, images in enumerate(volumes):
                try:
                    if isinstance(images, VolumeError):
                        raise images
                    one = self._on_grid(as_images(images, None), None)
                except VolumeError as error:
                    taken[number] = error
                    continue
                taken[number] = one
                total += len(one.on_grid)
                yield from one.slices(number)

        following = 0

        def finished() -> Iterator[Segmentation | VolumeError]:
            nonlocal following
            while following in taken:
                one = taken[following]
                if isinstance(one, _Taken) and not one.done:
                    return
                del taken[following]
                following += 1
                yield one if isinstance(one, VolumeError) else self._finish(one, every_slice)

        for done, result in enumerate(self.analyse(slices()), 1):
            owner = taken[result.volume]
            assert isinstance(owner, _Taken)
            owner.results.append(result)
            progress(done, total)
            yield from finished()
        yield from finished()

    def measure(
        self,
        images: SpatialImage | Sequence[SpatialImage] | ArrayLike,
        *,
        affine: ArrayLike | None = None,
    ) -> HeadMeasure:
        """The intensities and the middle of a head, for :meth:`segment_stream`: of an earlier
        volume of the same patient, protocol and field of view.

        Parameters
        ----------
        images, affine : as :meth:`segment` takes them

        Raises
        ------
        VolumeError
            If the volume cannot be used.
        """
        return measure_head(as_images(images, affine), self.bundle.manifest)

    def segment_stream(
        self,
        slices: Iterable[tuple[int, ArrayLike]],
        *,
        pixel_mm: tuple[float, float],
        slice_mm: float | None = None,
        axes: str = "RA",
        measured: HeadMeasure | None = None,
        settle: int | None = None,
        every_slice: bool = False,
        cancel: threading.Event | None = None,
    ) -> Iterator[StreamedSlice]:
        """Segment axial slices as they arrive, and yield each as it is done, in whatever order.

        Where the calibration averages over neighbours, a slice is done when these are; the
        outermost ones of the head wait for the last slice of all.

        A thread takes them from ``slices``, so that those under way go on while the next one is
        waited for. Leaving the loop, closing the iterator or setting ``cancel`` ends it: what is
        under way is dropped.

        Parameters
        ----------
        slices : (index, image): the axial index, from the feet up, which noise depends on; the
            image (H, W), or (C, H, W) of several modalities, any real type and range
        pixel_mm : spacing along the two axes of the image
        slice_mm : from one index to the next, None for that of what was measured; needed where
            nothing was and the calibration averages over neighbours
        axes : where these lead: ``RA`` (to the patient's right and front) or ``PL`` (rows and
            columns of an axial DICOM image), for instance
        measured : see :meth:`measure`: with that of the whole volume, results are those of
            :meth:`segment`
        settle : without ``measured``, how many slices to wait for and measure; they have to show
            the head, not air or the neck alone. None for all: then nothing comes before the last
        every_slice : segment slices that were found healthy, too
        cancel : set it from any thread

        Raises
        ------
        VolumeError
            If a slice cannot be used, when those before it are done; likewise what ``slices``
            raises.
        """
        return Stream(
            self, slices, pixel_mm, slice_mm, axes, measured, settle, every_slice, cancel
        ).results()

    def analyse(
        self,
        slices: Iterable[Slice | None],
        cancelled: Cancelled = never,
        done: Callable[[], None] = lambda: None,
    ) -> Iterator[SliceResult]:
        """Find anomalies on slices that are on the bundle's grid already, as they and their
        neighbours finish; see :func:`anofpdm.runtime.backends.scheduler.run` and
        :class:`anofpdm.runtime.refine.through_plane.Gathering`.

        ``done``: called for every slice that has gone through the
        process, also while its result waits for neighbours.
        """
        scored = self.bundle.manifest.scored_channels
        analysis = Analysis(self.setup, scored, self.seed)
        return analysis.run(self.backend, slices, cancelled, done)

    def _on_grid(self, images: Sequence[SpatialImage], names: Sequence[str] | None) -> _Taken:
        started = time.perf_counter()
        manifest = self.bundle.manifest
        head, slices = on_grid(images, names, manifest.modalities, manifest.grid)
        return _Taken(head, slices, started)

    def _finish(self, taken: _Taken, every_slice: bool) -> Segmentation:
        results, head = sorted(taken.results, key=lambda result: result.key), taken.head
        planes = [r.mask if every_slice or r.unhealthy else np.zeros_like(r.mask) for r in results]
        mask = (head.to_source(np.stack(planes)) >= 0.5).astype(np.uint8)
        return Segmentation(
            mask,
            mask_image(mask, head.source),
            tuple(results),
            int(mask.sum(dtype=np.int64)) * head.voxel_ml,
            time.perf_counter() - taken.started,
            head,
            (*head.volume.notes, *self._alone(head), *self._unlike(results), *self.backend.notes),
        )

    def _alone(self, head: Head) -> Iterator[str]:
        """A note where slices lie too far apart for neighbours to count, with which verdicts were
        calibrated."""
        wide, apart = self.setup.calibration.neighbours_mm, head.volume.voxel_mm[2]
        if wide and not reach(wide, apart):
            yield (
                f"slices lie {apart:g} mm apart, and the calibration has those nearer than "
                f"{wide:g} mm count together: by themselves more are found unhealthy"
            )

    def _unlike(self, results: list[SliceResult]) -> Iterator[str]:
        """A note where the volume is not like those that the thresholds were calibrated on."""
        known = self.setup.calibration.familiar
        excess = known.excess([r.MSE_0 for r in results]) if known else 0.0
        if excess > 1:
            yield (
                f"unlike the volumes of the calibration (MSE_0 is {excess:.1f} times as far off as "
                "any of theirs may be): thresholds may not hold; check modality "
                f"({', '.join(self.bundle.manifest.modalities)}), voxel size and orientation"
            )


@dataclass(frozen=True)
class _Taken:
    """A volume on its way: ``on_grid``: (n, C, size, size) float32, the slices to process."""

    head: Head
    on_grid: NDArray[np.float32]
    started: float
    results: list[SliceResult] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return len(self.results) == len(self.on_grid)

    def slices(self, number: int) -> list[Slice]:
        return numbered(self.head, self.on_grid, number)
