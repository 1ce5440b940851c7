"""What segmenting gives: of a slice, and of a volume."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from .volume.nifti import like
from .volume.slicing import Head


@dataclass(frozen=True)
class SliceResult:
    """What was found on one axial slice.

    ``key``: its axial index (from the feet up); ``volume``: whose slice it is; ``unhealthy``: the
    verdict; ``cosine`` (eq. 18), ``alignment`` (of guidance with the unguided error), ``map_peak``
    (the logarithm of the largest value of ``smoothed``): what it goes by, depending on the
    calibration; ``log_odds``: of being unhealthy, by the calibrated decision; ``probability``: that
    of ``log_odds``. Where the calibration has
    neighbouring slices count together, ``cosine``, ``alignment`` and ``H`` are averages over these.

    ``timesteps``: (n,) the visited ones; ``M``, ``MSE_h``, ``MSE_0``: (n, C) float64 over these and
    the scored modalities; ``t_e``: (C,); ``index``: (C,), the place in Algorithm 1's grid; ``Q``:
    the threshold; ``x0``: (C, size, size) float32 in [-1, 1], the scored modalities of the slice;
    ``H``: (size, size) float32, the anomaly map averaged over modalities; ``smoothed``: (size,
    size) float32, the map that is cut at ``Q``: H after the median filter or, where the calibration
    has a guided filter, the slice's own and its neighbours' median-filtered maps fitted to the
    slice; ``mask``: (size, size) bool, whatever the verdict.
    """

    key: int
    volume: int
    unhealthy: bool
    cosine: float
    alignment: float
    map_peak: float
    log_odds: float
    probability: float
    timesteps: NDArray[np.int64]
    M: NDArray[np.float64]
    MSE_h: NDArray[np.float64]
    MSE_0: NDArray[np.float64]
    t_e: NDArray[np.int64]
    index: NDArray[np.int64]
    Q: float
    x0: NDArray[np.float32]
    H: NDArray[np.float32]
    smoothed: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Segmentation:
    """A segmented volume.

    ``mask``: uint8, 0 or 1, in the axes and shape of the input; ``image``: the same as an image on
    the input's grid; ``slices``: the processed slices, in axial order; ``volume_ml``: of the mask;
    ``head``: where the slices lie in the input; ``notes``: what the user may want to know, a line
    each.
    """

    mask: NDArray[np.uint8]
    image: nib.Nifti1Image
    slices: tuple[SliceResult, ...]
    volume_ml: float
    seconds: float
    head: Head
    notes: tuple[str, ...] = ()

    @property
    def unhealthy_slices(self) -> int:
        """How many axial slices were found unhealthy."""
        return sum(result.unhealthy for result in self.slices)

    def anomaly_map(self) -> nib.Nifti1Image:
        """H (eq. 20, the mean over modalities, whatever the verdicts) on the input's grid: float32,
        from 0 on; 0 where no slice was processed."""
        H = self.head.to_source(np.stack([result.H for result in self.slices]))
        return like(H, self.head.source, b"map")
