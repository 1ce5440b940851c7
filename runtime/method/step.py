"""One step of the forward process: the two predictions, and the way to the next step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """One slice at one visited timestep. Arrays are (C, H, W) float32."""

    t: int
    abar: float
    clip: bool
    x0: Float32
    x_t: Float32
    eps_healthy: Float32
    eps_null: Float32

    def HGP(self, w: float) -> Float32:
        """Healthy-guided prediction of the clean slice (eqs. 6, 7)."""
        eps_w = np.float32(1 + w) * self.eps_healthy - np.float32(w) * self.eps_null
        return self._clean(eps_w)

    def UGP(self) -> Float32:
        """Unguided prediction of the clean slice (eq. 10)."""
        return self._clean(self.eps_null)

    def _clean(self, eps: Float32) -> Float32:
        noise = np.float32(math.sqrt(1 - self.abar)) * eps
        clean = np.asarray((self.x_t - noise) / np.float32(math.sqrt(self.abar)), np.float32)
        return np.clip(clean, -1, 1) if self.clip else clean


def ddim_step(x_t: Float32, UGP: Float32, abar_t: float, abar_next: float) -> Float32:
    """Deterministic encoding from one visited timestep to the next (eq. 4)."""
    direction = (x_t - np.float32(math.sqrt(abar_t)) * UGP) / np.float32(math.sqrt(1 - abar_t))
    clean = np.float32(math.sqrt(abar_next)) * UGP
    return np.asarray(clean + np.float32(math.sqrt(1 - abar_next)) * direction, np.float32)
