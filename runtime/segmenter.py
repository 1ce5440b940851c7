"""``Segmenter``: load a bundle once, segment many volumes. No files needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import ArrayLike, NDArray

from .backend import Backend, Recipe
from .bundle import DEFAULT, Bundle, open_bundle
from .device import open_device
from .errors import SetupError, VolumeError
from .forward import Slice
from .grid import Placement, from_grid, to_grid
from .postprocess import cut
from .select import threshold
from .setup import Setup, resolve
from .volume import Volume, mask_image, read_volume

_AS_CALIBRATED = Setup()


@dataclass(frozen=True)
class SliceResult:
    """What was found on one axial slice.

    ``key``: its axial index (from the feet up); ``volume``: whose slice it is; ``unhealthy``: the
    verdict; ``cosine`` (eq. 18), ``peak`` (99 % quantile of the map of eq. 20), ``alignment`` (of
    guidance with the unguided error): what it goes by, depending on the calibration;
    ``probability``: of being unhealthy, by the calibrated decision; ``timesteps``: (n,) the visited
    ones; ``M``, ``MSE_h``, ``MSE_0``: (n, C) float64 over these and the scored modalities; ``t_e``:
    (C,); ``index``: (C,), the place in Algorithm 1's grid; ``Q``: the threshold; ``H``: (size,
    size) float32, the anomaly map averaged over modalities; ``mask``: (size, size) bool, whatever
    the verdict.
    """

    key: int
    volume: int
    unhealthy: bool
    cosine: float
    peak: float
    alignment: float
    probability: float
    timesteps: NDArray[np.int64]
    M: NDArray[np.float64]
    MSE_h: NDArray[np.float64]
    MSE_0: NDArray[np.float64]
    t_e: NDArray[np.int64]
    index: NDArray[np.int64]
    Q: float
    H: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Segmentation:
    """A segmented volume.

    ``mask``: uint8, 0 or 1, in the axes and shape of the input; ``image``: the same as an image on
    the input's grid; ``slices``: the processed slices, in axial order; ``volume_ml``: of the mask;
    ``notes``: what the user may want to know, a line each.
    """

    mask: NDArray[np.uint8]
    image: nib.Nifti1Image
    slices: tuple[SliceResult, ...]
    volume_ml: float
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def unhealthy_slices(self) -> int:
        """How many axial slices were found unhealthy."""
        return sum(result.unhealthy for result in self.slices)


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
        device : see :func:`anofpdm.runtime.device.open_device`; ``segmenter.backend.device`` says
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
        resolve(opened, setup)
        backend = open_device(device, opened, threads=threads, slots=slots)
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
        started = time.perf_counter()
        head = self._on_grid(_as_images(images, affine), names, started)
        for result in self.analyse(head.slices(0)):
            head.results.append(result)
            progress(len(head.results), head.count)
        return self._finish(head, every_slice)

    def segment_many(
        self,
        volumes: Iterable[SpatialImage | Sequence[SpatialImage]],
        *,
        every_slice: bool = False,
    ) -> Iterator[Segmentation]:
        """Segment volumes one after the other, through the same slots: the network's batch stays
        full from one volume to the next.

        Parameters
        ----------
        volumes : each an image, or one image per modality; taken when their turn comes

        Yields
        ------
        Segmentations, in the order of the volumes; the same as one by one

        Raises
        ------
        VolumeError
            If a volume cannot be segmented; those before it are yielded first.
        """
        heads: dict[int, _Head] = {}
        bad: list[VolumeError] = []

        def slices() -> Iterator[Slice]:
            for number, images in enumerate(volumes):
                started = time.perf_counter()
                try:
                    heads[number] = self._on_grid(_as_images(images, None), None, started)
                except VolumeError as error:
                    bad.append(VolumeError(f"volume {number + 1}: {error}"))
                    return
                yield from heads[number].slices(number)

        following = 0
        for result in self.analyse(slices()):
            heads[result.volume].results.append(result)
            while following in heads and len(heads[following].results) == heads[following].count:
                yield self._finish(heads.pop(following), every_slice)
                following += 1
        if bad:
            raise bad[0]

    def analyse(self, slices: Iterable[Slice]) -> Iterator[SliceResult]:
        """Find anomalies on slices that are on the bundle's grid already, as they finish."""
        setup, scored = self.setup, self.bundle.manifest.scored_channels
        calibration = setup.calibration
        timesteps, M_max = setup.process.timesteps, np.array(calibration.M_max)
        recipe = Recipe(setup.process, calibration.w, scored, setup.rule, setup.stop, self.seed)
        for item, found in self.backend.find(recipe, slices):
            M, H = found.M, found.H
            cuts = threshold(H, M.max(axis=0), M_max, calibration.a, calibration.b)
            Q = cuts.Q if setup.Q is None else setup.Q
            mean_H = H.mean(axis=0)
            statistics = found.statistics()
            yield SliceResult(
                key=item.key,
                volume=item.volume,
                unhealthy=calibration.unhealthy(statistics),
                cosine=statistics.cosine,
                peak=statistics.peak,
                alignment=statistics.alignment,
                probability=calibration.logistic.probability(statistics),
                timesteps=timesteps[: len(M)],
                M=M,
                MSE_h=found.MSE_h,
                MSE_0=found.MSE_0,
                t_e=found.t_e,
                index=cuts.index,
                Q=Q,
                H=mean_H,
                mask=cut(mean_H, Q),
            )

    def _on_grid(
        self, given: list[SpatialImage], names: Sequence[str] | None, started: float
    ) -> _Head:
        if names and len(names) != len(given):
            raise VolumeError(f"{len(names)} names for {len(given)} images")
        called = list(names) if names else [image.get_filename() or "the image" for image in given]
        manifest = self.bundle.manifest
        volume = read_volume(given, called, len(manifest.modalities))
        slices, placement = to_grid(volume.data, volume.voxel_mm, manifest.grid)
        if not len(slices):
            raise VolumeError(
                f"{called[0]} shows too little of a head on every slice: are its voxels really "
                f"{' x '.join(f'{mm:g}' for mm in volume.voxel_mm)} mm?"
            )
        # The voxels have been resampled: what is needed from here on is where they were.
        volume = replace(volume, data=volume.data[:, :0])
        return _Head(volume, placement, slices, started, [])

    def _finish(self, head: _Head, every_slice: bool) -> Segmentation:
        results = sorted(head.results, key=lambda result: result.key)
        planes = [r.mask if every_slice or r.unhealthy else np.zeros_like(r.mask) for r in results]
        mask = from_grid(np.stack(planes), self.bundle.manifest.grid, head.placement) >= 0.5
        turned = head.volume.to_source(mask.astype(np.uint8)).astype(np.uint8)
        return Segmentation(
            turned,
            mask_image(turned, head.volume.source),
            tuple(results),
            float(mask.sum() * np.prod(head.volume.voxel_mm) / 1000),
            time.perf_counter() - head.started,
            (*head.volume.notes, *self._unlike(results), *self.backend.notes),
        )

    def _unlike(self, results: list[SliceResult]) -> Iterator[str]:
        """A note where the volume is not like those that the thresholds were calibrated on."""
        known = self.setup.calibration.familiar
        excess = known.excess([result.MSE_0 for result in results]) if known else 0.0
        if excess > 1:
            yield (
                f"unlike the volumes of the calibration (MSE_0 is {excess:.1f} times as far off as "
                "any of theirs may be): thresholds may not hold; check modality "
                f"({', '.join(self.bundle.manifest.modalities)}), voxel size and orientation"
            )


@dataclass(frozen=True)
class _Head:
    """A volume on its way: ``on_grid``: (n, C, size, size) float32, the slices to process."""

    volume: Volume
    placement: Placement
    on_grid: NDArray[np.float32]
    started: float
    results: list[SliceResult]

    @property
    def count(self) -> int:
        return len(self.on_grid)

    def slices(self, number: int) -> Iterator[Slice]:
        for level, x0 in zip(self.placement.levels, self.on_grid, strict=True):
            yield Slice(int(level), x0, number)


def _as_images(
    images: SpatialImage | Sequence[SpatialImage] | ArrayLike, affine: ArrayLike | None
) -> list[SpatialImage]:
    if isinstance(images, SpatialImage):
        return [images]
    if isinstance(images, Sequence) and images and isinstance(images[0], SpatialImage):
        return list(images)
    if isinstance(images, str | Path):
        raise VolumeError(f"pass nibabel.load({str(images)!r}), not its name")
    if affine is None:
        raise VolumeError("an array needs its affine: pass affine=(4, 4), voxels to millimetres")
    array = np.asarray(images)
    if array.dtype.kind not in "biuf":
        raise VolumeError(f"the array holds {array.dtype} values: give real numbers")
    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4):
        raise VolumeError(f"affine has shape {matrix.shape}: it must be (4, 4)")
    return [nib.Nifti1Image(array.astype(np.float32), matrix)]
