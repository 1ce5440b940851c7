"""What segmenting gives, of a slice and of a volume, and how it was made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from .bundle.bundle import Bundle
from .bundle.options import Options, Plan
from .volume.nifti import image_like
from .volume.slicing import VolumeGeometry


@dataclass(frozen=True)
class SliceResult:
    """One axial slice: n visited timesteps, C scored modalities, S x S pixels of the model's grid.

    Where the calibration averages over neighbouring slices, ``cosine``, ``alignment`` and ``H`` are
    averages over the window.
    """

    key: int  # axial index, from the feet up
    volume: int  # whose slice it is
    unhealthy: bool  # the image-level decision
    cosine: float  # eq. 18
    alignment: float  # cosine between guidance and the unguided error
    map_peak: float  # natural logarithm of the largest value of `smoothed`
    log_odds: float  # of being unhealthy, by the calibrated decision
    probability: float  # the same in 0..1
    timesteps: NDArray[np.int64]  # (n,) visited timesteps, 1-based
    M: NDArray[np.float64]  # (n, C) divergence (eq. 12)
    MSE_h: NDArray[np.float64]  # (n, C) error of the healthy-guided prediction (eq. 14)
    MSE_0: NDArray[np.float64]  # (n, C) error of the unguided prediction (eq. 16)
    t_e: NDArray[np.int64]  # (C,) timestep of the peak of M (eq. 21)
    index: NDArray[np.int64]  # (C,) place in Algorithm 1's grid of quantiles, 0..100
    Q: float  # threshold: Algorithm 1, or its mean with Otsu's
    x0: NDArray[np.float32]  # (C, S, S) the scored modalities, in [-1, 1]
    H: NDArray[np.float32]  # (S, S) anomaly map (eq. 20), mean over modalities
    smoothed: NDArray[np.float32]  # (S, S) the map that is cut: after median or guided filter
    mask: NDArray[np.bool_]  # (S, S) before the image-level decision gates it


@dataclass(frozen=True)
class InputImage:
    """An image that was segmented."""

    name: str  # of its file, without folders, which are often named after patients
    files_sha256: Mapping[str, str] = field(default_factory=dict)  # by name; empty if not known
    shape: tuple[int, ...] | None = None  # in voxels, None for a DICOM series
    voxel_mm: tuple[float, ...] | None = None  # along the image's axes, None for a DICOM series

    def as_json(self) -> dict[str, Any]:
        """As JSON values, without what is not known."""
        content: dict[str, Any] = {"name": self.name, "files_sha256": dict(self.files_sha256)}
        if self.shape is not None and self.voxel_mm is not None:
            content |= {"shape": list(self.shape), "voxel_mm": list(self.voxel_mm)}
        return content


@dataclass(frozen=True)
class Segmentation:
    """A segmented volume, and everything that decided its mask."""

    mask: NDArray[np.uint8]  # 0 or 1, in the axes and shape of the input
    image: nib.Nifti1Image  # the mask on the input's grid
    slices: tuple[SliceResult, ...]  # the processed slices, from the feet up
    volume_ml: float  # of the mask
    seconds: float | None  # None where the same run has to give the same bytes
    geometry: VolumeGeometry  # where the slices lie in the input
    bundle: Bundle  # the model
    options: Options  # as they were given
    plan: Plan  # what they and the bundle make
    seed: int  # of the noise
    every_slice: bool  # whether healthy slices were segmented, too
    device: str  # what it ran on, in words
    inputs: tuple[InputImage, ...] = ()  # in the order of the modalities; none for arrays
    notes: tuple[str, ...] = ()  # what the user may want to know, a line each

    @property
    def unhealthy_slices(self) -> int:
        """How many axial slices the image-level decision calls unhealthy."""
        return sum(result.unhealthy for result in self.slices)

    def anomaly_map(self) -> nib.Nifti1Image:
        """H (eq. 20, mean over modalities, whatever the image-level decisions) on the input's grid:
        float32, from 0 on; 0 where no slice was processed."""
        H = self.geometry.to_source(np.stack([result.H for result in self.slices]))
        return image_like(H, self.geometry.source, b"map")
