"""Noise that depends on what it is for, not on when, where or in which batch it is drawn.

Philox 4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) turns (key,
counter) into bits without any state, and the Box-Muller transform turns these into normal numbers:
two short formulas that a GPU computes just as well.
"""

import math

import numpy as np
from numpy.typing import NDArray


def slice_noise(seed: int, key: int, t: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise of one slice at one timestep.

    Parameters
    ----------
    seed : non-negative, the run's seed
    key : non-negative, which slice
    t : the timestep, 1-based

    Returns
    -------
    ``shape`` float32; the same for the same (seed, key, t), whatever was drawn before
    """
    count = math.prod(shape)
    pairs = (count + 1) // 2
    bits = np.random.Philox(key=[seed, key], counter=[0, 0, 0, t]).random_raw(2 * pairs)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # inside 0..1
    radius = np.sqrt(-2 * np.log(uniform[0::2]))
    angle = 2 * math.pi * uniform[1::2]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return normal.reshape(-1)[:count].reshape(shape).astype(np.float32)
