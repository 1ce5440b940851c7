"""A network that is asked only once about the same noisy slice.

What the network sees does not depend on guidance, maps or thresholds, so that one pass serves every
set-up with the same timesteps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anofpdm.runtime.backends.base import Denoiser

Float32 = NDArray[np.float32]


class Remembered:
    """See :class:`anofpdm.runtime.backends.base.Denoiser`; :meth:`forget` frees the memory.

    ``asked``: of how many noisy slices the network itself has predicted the noise.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self._known: dict[tuple[int, bytes], tuple[Float32, Float32]] = {}
        self.asked = 0

    def __call__(self, x_t: Float32, t: NDArray[np.int64]) -> tuple[Float32, Float32]:
        """See :class:`anofpdm.runtime.backends.base.Denoiser`."""
        keys = [(int(step), sample.tobytes()) for step, sample in zip(t, x_t, strict=True)]
        new = {key: i for i, key in enumerate(keys) if key not in self._known}
        if new:
            rows = list(new.values())
            predicted = zip(*self._denoiser(x_t[rows], t[rows]), strict=True)
            self._known |= dict(zip(new, predicted, strict=True))
            self.asked += len(rows)
        eps_healthy, eps_null = zip(*(self._known[key] for key in keys), strict=True)
        return np.stack(eps_healthy), np.stack(eps_null)

    def forget(self) -> None:
        """Drop what is known."""
        self._known.clear()
