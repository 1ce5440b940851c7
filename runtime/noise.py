"""Noise that depends on what it is for, not on when it is drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def slice_noise(seed: int, key: int, t: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise of one slice at one timestep, from the counter-based Philox generator.

    Parameters
    ----------
    seed : non-negative, the run's seed
    key : non-negative, which slice
    t : the timestep, 1-based

    Returns
    -------
    ``shape`` float32; the same for the same (seed, key, t), whatever was drawn before
    """
    philox = np.random.Philox(key=[seed, key], counter=[0, 0, 0, t])
    return np.random.Generator(philox).standard_normal(shape, dtype=np.float32)
