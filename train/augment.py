"""A rough brain mask by morphology, for training on slices without the skull.

It is augmentation, not skull stripping: a network trained on whole heads with it also works on
brain-extracted volumes.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_CORE_MM, _REGROWTH_MM, _SMALLEST_SHARE = 4.0, 5.0, 0.03


def rough_brain_mask(plane: NDArray[np.float32], pixel_mm: float) -> NDArray[np.bool_]:
    """Brain mask of one axial slice.

    Parameters
    ----------
    plane : (H, W) float32 in [-1, 1], a modality in which CSF is dark (FLAIR, T1)
    pixel_mm : spacing of the pixels

    Returns
    -------
    (H, W) bool; all True where there is no brain
    """
    core = ndimage.distance_transform_edt(plane > -0.6) * pixel_mm > _CORE_MM
    components, count = ndimage.label(core)
    if not count:
        return np.ones(plane.shape, bool)
    # Erosion separates the brain from the scalp; it is the largest remaining component.
    sizes = np.bincount(components.ravel())[1:]
    brain = components == 1 + int(np.argmax(sizes))
    grown = ndimage.distance_transform_edt(~brain) * pixel_mm < _REGROWTH_MM
    brain = ndimage.binary_opening(ndimage.binary_fill_holes(grown & (plane > -0.75)))
    if brain.mean() < _SMALLEST_SHARE:
        return np.ones(plane.shape, bool)
    return np.asarray(brain, dtype=bool)
