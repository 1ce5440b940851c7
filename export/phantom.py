"""Synthetic slices that look roughly like heads, to compare networks on."""

import numpy as np
from numpy.typing import NDArray


def phantom_slices(count: int, channels: int, size: int, seed: int = 0) -> NDArray[np.float32]:
    """Ellipses with a bright rim, dark ventricles, texture, and on every second one a bright blob.

    Returns
    -------
    (count, channels, size, size) float32 in [-1, 1], background -1
    """
    rng = np.random.Generator(np.random.Philox(seed))
    x, y = np.meshgrid(*2 * [np.linspace(-1, 1, size)], indexing="ij")
    slices = np.empty((count, channels, size, size), np.float32)
    for i in range(count):
        across, along = rng.uniform(0.55, 0.7), rng.uniform(0.7, 0.85)
        radius = np.hypot(x / across, y / along)
        ventricles = np.hypot((np.abs(x) - 0.12) / 0.07, (y + 0.05) / 0.25) < 1
        blob = np.hypot(x - rng.uniform(0.2, 0.35), y - rng.uniform(-0.3, 0.3)) / 0.2
        for c in range(channels):
            head = 0.4 + 0.03 * rng.standard_normal((size, size))
            head += 0.08 * np.sin(7 * x + rng.uniform(0, 6)) * np.sin(9 * y + rng.uniform(0, 6))
            head = np.where(ventricles, 0.15, head)
            if i % 2:
                head += 0.35 * np.exp(-(blob**2))
            head = np.where(radius > 0.93, 0.9, head)
            slices[i, c] = 2 * np.clip(np.where(radius < 1, head, 0), 0, 1) - 1
    return slices
