"""``Segmenter``: load a bundle once, segment many volumes. No files needed."""

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
from .bundle.bundle import DEFAULT, Bundle, open_bundle
from .bundle.options import Options, resolve
from .errors import OptionsError, VolumeError
from .method.process import Slice
from .pipeline import Pipeline
from .refine.through_plane import reach
from .results import InputImage, Segmentation, SliceResult
from .streaming import HeadMeasurement, Stream, StreamedSlice, measure_head
from .volume.nifti import image_voxel_mm, mask_image
from .volume.slicing import VolumeGeometry, as_images, as_slices, names_of, to_slices

_DEFAULTS = Options()
Images = SpatialImage | Sequence[SpatialImage]
Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """No progress."""


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
    options : the preset, and what overrides it
    seed : non-negative; a mask is a function of (volume, bundle, options, seed)
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, *, options: Options = _DEFAULTS, seed: int = 0
    ) -> None:
        if seed < 0:
            raise OptionsError(f"seed must be at least 0, not {seed}")
        self.bundle, self.options, self.plan = bundle, options, resolve(bundle, options)
        wanted = self.plan.calibration.conditions.precision
        if (wanted == "bf16") != (backend.precision == "bf16"):
            raise OptionsError(
                f"preset {self.plan.preset} was calibrated in {wanted}, the backend computes as "
                f"{backend.precision}: take another preset or backend"
            )
        self.backend, self.seed = backend, seed
        self._pipeline = Pipeline(bundle, self.plan, backend, seed)

    @classmethod
    def load(
        cls,
        bundle: Bundle | Path | str | None = None,
        *,
        options: Options = _DEFAULTS,
        device: str = "auto",
        threads: int | None = None,
        slots: int | None = None,
        seed: int = 0,
    ) -> "Segmenter":
        """Load a bundle (the embedded default unless one is named).

        Parameters
        ----------
        device : see :func:`anofpdm.runtime.backends.device.open_device`;
            ``segmenter.backend.device`` says which one is used
        threads : CPU threads; None for as many as there are cores
        slots : how many slices share the network's batch, None for what suits the device; does not
            change masks on the CPU, nor the loop on a GPU, but there a library may round otherwise

        Raises
        ------
        BundleError
            If the bundle cannot be used, or has no calibration for the options.
        DeviceError
            If the device cannot be used.
        MissingExtraError
            If a package that it needs is not installed.
        """
        loaded = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle or DEFAULT))
        precision = resolve(loaded, options).calibration.conditions.precision
        backend = open_device(device, loaded, threads=threads, slots=slots, precision=precision)
        return cls(loaded, backend, options=options, seed=seed)

    def close(self) -> None:
        """Give the device back, as leaving a ``with`` does; a second time does nothing."""
        self.backend.close()

    def __enter__(self) -> "Segmenter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def segment(
        self,
        images: Images | ArrayLike,
        *,
        affine: ArrayLike | None = None,
        names: Sequence[str] | None = None,
        every_slice: bool = False,
        progress: Progress = _silent,
    ) -> Segmentation:
        """Segment one volume.

        Parameters
        ----------
        images : an image; one image per modality, in the bundle's order; or an array
            (X, Y, Z) or (X, Y, Z, C), any real type and range
        affine : (4, 4), voxels to millimetres in RAS+; for arrays only, and needed there
        names : of the images in messages and results; None for their files' names
        every_slice : segment healthy slices, too
        progress : called with the number of slices done and in all

        Raises
        ------
        VolumeError
            If the volume cannot be segmented.
        """
        volume = self._load_volume(as_images(images, affine), names)
        for result in self.segment_slices(volume.numbered(0)):
            volume.results.append(result)
            progress(len(volume.results), len(volume.slices))
        return self._finish(volume, every_slice)

    def segment_many(
        self,
        volumes: Iterable[Images],
        *,
        every_slice: bool = False,
        progress: Progress = _silent,
    ) -> Iterator[Segmentation]:
        """Segment volumes one after the other, through the same slots: the network's batch stays
        full from one volume to the next.

        Parameters
        ----------
        volumes : each an image, or one image per modality; fetched when their turn comes
        every_slice : segment healthy slices, too
        progress : called with the number of slices done, and in all volumes fetched so far

        Yields
        ------
        Segmentations, in the order of the volumes; the same as one by one

        Raises
        ------
        VolumeError
            If a volume cannot be segmented; those before it are yielded first.
        """
        many = self.segment_each(volumes, every_slice=every_slice, progress=progress)
        for number, result in enumerate(many, 1):
            if isinstance(result, VolumeError):
                raise VolumeError(f"volume {number}: {result}")
            yield result

    def segment_each(
        self,
        volumes: Iterable[Images | VolumeError],
        *,
        every_slice: bool = False,
        progress: Progress = _silent,
    ) -> Iterator[Segmentation | VolumeError]:
        """As :meth:`segment_many`, but a volume's error is yielded in its place, and the others go
        on; a volume that could not be read is passed in as the error that says so."""
        under_way: dict[int, _LoadedVolume | VolumeError] = {}
        total = following = 0

        def slices() -> Iterator[Slice]:
            nonlocal total
            for number, images in enumerate(volumes):
                try:
                    if isinstance(images, VolumeError):
                        raise images
                    volume = self._load_volume(as_images(images, None), None)
                except VolumeError as error:
                    under_way[number] = error
                    continue
                under_way[number] = volume
                total += len(volume.slices)
                yield from volume.numbered(number)

        def finished() -> Iterator[Segmentation | VolumeError]:
            nonlocal following
            while following in under_way:
                volume = under_way[following]
                if isinstance(volume, _LoadedVolume) and not volume.done:
                    return
                del under_way[following]
                following += 1
                if isinstance(volume, VolumeError):
                    yield volume
                else:
                    yield self._finish(volume, every_slice)

        for done, result in enumerate(self.segment_slices(slices()), 1):
            owner = under_way[result.volume]
            assert isinstance(owner, _LoadedVolume)
            owner.results.append(result)
            progress(done, total)
            yield from finished()
        yield from finished()

    def measure(
        self, images: Images | ArrayLike, *, affine: ArrayLike | None = None
    ) -> HeadMeasurement:
        """The intensities and the middle of a head, for :meth:`segment_stream`: of an earlier
        volume of the same patient, protocol and field of view.

        Parameters
        ----------
        images, affine : see :meth:`segment`

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
        measurement: HeadMeasurement | None = None,
        settle: int | None = None,
        every_slice: bool = False,
        cancel: threading.Event | None = None,
    ) -> Iterator[StreamedSlice]:
        """Segment axial slices as they arrive, and yield each as it is done, in whatever order.

        Where the calibration averages over neighbours, a slice is done when these are; the
        outermost ones of the head wait for the last slice of all. A thread fetches the slices, so
        that those under way go on while the next one is waited for. Leaving the loop, closing the
        iterator or setting ``cancel`` ends it: what is under way is dropped.

        Parameters
        ----------
        slices : (index, image): the axial index, from the feet up, which noise depends on; the
            image (H, W), or (C, H, W) of several modalities, any real type and range
        pixel_mm : spacing along the two axes of the image
        slice_mm : from one index to the next, None for that of the measured volume; needed without
            a measurement where the calibration averages over neighbours
        axes : where the image's axes lead: ``RA`` (to the patient's right and front) or ``PL``
            (rows and columns of an axial DICOM image), for instance
        measurement : see :meth:`measure`: with that of the whole volume, results are those of
            :meth:`segment`
        settle : without a measurement, how many slices to wait for and measure; they have to show
            the head, not air or the neck alone. None for all: then nothing comes before the last
        every_slice : segment healthy slices, too
        cancel : set it from any thread

        Raises
        ------
        VolumeError
            If a slice cannot be used, when those before it are done; likewise what ``slices``
            raises.
        """
        return Stream(
            self._pipeline, slices, pixel_mm, slice_mm, axes, measurement, settle, every_slice,
            cancel,
        ).results()  # fmt: skip

    def segment_slices(self, slices: Iterable[Slice | None]) -> Iterator[SliceResult]:
        """Segment slices that are on the bundle's grid already, and yield each as soon as it and
        its neighbours are done; see :class:`anofpdm.runtime.pipeline.Pipeline`."""
        return self._pipeline.run(slices)

    def _load_volume(
        self, images: Sequence[SpatialImage], names: Sequence[str] | None
    ) -> "_LoadedVolume":
        started, manifest = time.perf_counter(), self.bundle.manifest
        geometry, slices = to_slices(images, names, manifest.modalities, manifest.grid)
        files = [bool(image.get_filename()) for image in images]
        inputs = tuple(
            InputImage(Path(name).name, {}, tuple(map(int, image.shape)), image_voxel_mm(image))
            for name, image, is_file in zip(names_of(images, names), images, files, strict=True)
            if names or is_file
        )
        return _LoadedVolume(geometry, slices, started, inputs)

    def _finish(self, volume: "_LoadedVolume", every_slice: bool) -> Segmentation:
        results, geometry = sorted(volume.results, key=lambda r: r.key), volume.geometry
        planes = [r.mask if every_slice or r.unhealthy else np.zeros_like(r.mask) for r in results]
        mask = (geometry.to_source(np.stack(planes)) >= 0.5).astype(np.uint8)
        notes = (*geometry.volume.notes, *self._far_apart(geometry), *self._implausible(results))
        return Segmentation(
            mask=mask,
            image=mask_image(mask, geometry.source),
            slices=tuple(results),
            volume_ml=int(mask.sum(dtype=np.int64)) * geometry.voxel_ml,
            seconds=time.perf_counter() - volume.started,
            geometry=geometry,
            bundle=self.bundle,
            options=self.options,
            plan=self.plan,
            seed=self.seed,
            every_slice=every_slice,
            device=self.backend.device,
            inputs=volume.inputs,
            notes=(*notes, *self.backend.notes),
        )

    def _far_apart(self, geometry: VolumeGeometry) -> Iterator[str]:
        """A note where slices lie too far apart for the window that decisions were calibrated
        with."""
        width_mm, spacing_mm = self.plan.refinement.neighbours_mm, geometry.volume.voxel_mm[2]
        if width_mm and not reach(width_mm, spacing_mm):
            yield (
                f"slices lie {spacing_mm:g} mm apart, and the calibration averages over those "
                f"nearer than {width_mm:g} mm: alone, more slices are called unhealthy"
            )

    def _implausible(self, results: list[SliceResult]) -> Iterator[str]:
        """A note where the volume is out of the distribution that thresholds were calibrated on."""
        plausibility = self.plan.calibration.plausibility
        excess = plausibility.excess([r.MSE_0 for r in results]) if plausibility else 0.0
        if excess > 1:
            yield (
                f"unlike the volumes of the calibration (MSE_0 is {excess:.1f} times as far off as "
                "any of theirs may be): thresholds may not hold; check modality "
                f"({', '.join(self.bundle.manifest.modalities)}), voxel size and orientation"
            )


@dataclass(frozen=True)
class _LoadedVolume:
    """A volume on its way."""

    geometry: VolumeGeometry  # where its slices lie
    slices: NDArray[np.float32]  # (n, C, size, size), those to process
    started: float  # seconds
    inputs: tuple[InputImage, ...]  # what results say of its images
    results: list[SliceResult] = field(default_factory=list)  # so far

    @property
    def done(self) -> bool:
        return len(self.results) == len(self.slices)

    def numbered(self, number: int) -> list[Slice]:
        return as_slices(self.geometry, self.slices, number)
