"""``Segmenter``: load a bundle once, segment many volumes. No files needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import ArrayLike, NDArray

from .bundle import DEFAULT, Bundle, Calibration, open_bundle
from .denoiser import Denoiser, OnnxDenoiser
from .errors import VolumeError
from .forward import Process, Slice, run
from .grid import from_grid, to_grid
from .postprocess import cut
from .select import AnomalyDigest, peak, threshold
from .volume import mask_image, read_volume


@dataclass(frozen=True)
class SliceResult:
    """What was found on one axial slice.

    ``key``: its axial index (from the feet up); ``unhealthy``: the verdict; ``cosine`` (eq. 18) and
    ``peak`` (99 % quantile of H): what it goes by, depending on the calibration;
    ``M``, ``MSE_h``, ``MSE_0``: (n, C) float64 over visited steps and scored modalities;
    ``t_e``: (C,); ``Q``: the threshold; ``H``: (size, size) float32, the anomaly map averaged over
    modalities; ``mask``: (size, size) bool, whatever the verdict.
    """

    key: int
    unhealthy: bool
    cosine: float
    peak: float
    M: NDArray[np.float64]
    MSE_h: NDArray[np.float64]
    MSE_0: NDArray[np.float64]
    t_e: NDArray[np.int64]
    Q: float
    H: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Segmentation:
    """A segmented volume.

    ``mask``: uint8, 0 or 1, in the axes and shape of the input; ``image``: the same as an image on
    the input's grid; ``slices``: the processed slices, in axial order; ``volume_ml``: of the mask.
    """

    mask: NDArray[np.uint8]
    image: nib.Nifti1Image
    slices: tuple[SliceResult, ...]
    volume_ml: float
    seconds: float

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
    denoiser : its network
    seed : non-negative; a mask is a function of (volume, bundle, seed)
    slots : how many slices share the network's batch; does not change masks
    """

    def __init__(
        self, bundle: Bundle, denoiser: Denoiser, *, seed: int = 0, slots: int = 4
    ) -> None:
        self.bundle = bundle
        self.calibration: Calibration = bundle.calibrated()
        self.seed, self.slots = seed, slots
        self._denoiser = denoiser
        conditions = self.calibration.conditions
        self.process = Process(
            bundle.manifest.schedule, conditions.L, conditions.stride, conditions.clip
        )

    @classmethod
    def load(
        cls,
        bundle: Path | str | None = None,
        *,
        threads: int | None = None,
        seed: int = 0,
        slots: int = 4,
    ) -> Segmenter:
        """Load a bundle (the embedded default unless one is named) on the CPU.

        Raises
        ------
        BundleError
            If the bundle cannot be used.
        MissingExtraError
            If ONNX Runtime is not installed.
        """
        opened = open_bundle(DEFAULT if bundle is None else Path(bundle))
        opened.calibrated()
        return cls(opened, OnnxDenoiser(opened.network, threads), seed=seed, slots=slots)

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
        given = _as_images(images, affine)
        called = list(names) if names else [image.get_filename() or "the image" for image in given]
        manifest = self.bundle.manifest
        volume = read_volume(given, called, len(manifest.modalities))
        slices, placement = to_grid(volume.data, volume.voxel_mm, manifest.grid)
        if not len(slices):
            raise VolumeError(
                f"{called[0]} shows too little of a head on every slice: are its voxels really "
                f"{' x '.join(f'{mm:g}' for mm in volume.voxel_mm)} mm?"
            )
        stream = (Slice(int(level), x0) for level, x0 in zip(placement.levels, slices, strict=True))
        results = []
        for result in self.analyse(stream):
            results.append(result)
            progress(len(results), len(slices))
        results.sort(key=lambda result: result.key)
        planes = [r.mask if every_slice or r.unhealthy else np.zeros_like(r.mask) for r in results]
        mask = from_grid(np.stack(planes), manifest.grid, placement) >= 0.5
        turned = volume.to_source(mask.astype(np.uint8)).astype(np.uint8)
        return Segmentation(
            turned,
            mask_image(turned, volume.source),
            tuple(results),
            float(mask.sum() * np.prod(volume.voxel_mm) / 1000),
            time.perf_counter() - started,
        )

    def analyse(self, slices: Iterable[Slice]) -> Iterator[SliceResult]:
        """Find anomalies on slices that are on the bundle's grid already, as they finish."""
        calibration, scored = self.calibration, self.bundle.manifest.scored_channels

        def new_digest() -> AnomalyDigest:
            return AnomalyDigest(calibration.w, scored)

        stream = run(
            self.process, self._denoiser, slices, new_digest, seed=self.seed, slots=self.slots
        )
        M_max = np.array(calibration.M_max)
        for item, digest in stream:
            M = np.array(digest.M)
            Q = threshold(digest.H, M.max(axis=0), M_max, calibration.a, calibration.b)
            H = digest.H.mean(axis=0)
            cosine, highest = digest.cosine(), peak(digest.H)
            by_cosine = calibration.verdict == "cosine"
            yield SliceResult(
                key=item.key,
                unhealthy=cosine <= calibration.Cos_w if by_cosine else highest >= calibration.H_99,
                cosine=cosine,
                peak=highest,
                M=M,
                MSE_h=np.array(digest.MSE_h),
                MSE_0=np.array(digest.MSE_0),
                t_e=digest.t_e,
                Q=Q,
                H=H,
                mask=cut(H, Q),
            )


def _as_images(
    images: SpatialImage | Sequence[SpatialImage] | ArrayLike, affine: ArrayLike | None
) -> list[SpatialImage]:
    if isinstance(images, SpatialImage):
        return [images]
    if isinstance(images, Sequence) and images and isinstance(images[0], SpatialImage):
        return list(images)
    if affine is None:
        raise VolumeError("an array needs its affine: pass affine=(4, 4), voxels to millimetres")
    array = np.asarray(images)
    if array.dtype.kind not in "biuf":
        raise VolumeError(f"the array holds {array.dtype} values: give real numbers")
    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4):
        raise VolumeError(f"affine has shape {matrix.shape}: it must be (4, 4)")
    return [nib.Nifti1Image(array.astype(np.float32), matrix)]
