"""One step of the forward process: noising, the two predictions, and the move to the next step."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """One slice at one visited timestep."""

    t: int  # 1-based
    abar: float  # abar_t
    clip: bool  # whether predictions are clipped to [-1, 1]
    x0: Float32  # (C, H, W), the clean slice
    x_t: Float32  # (C, H, W), the noisy one
    eps_healthy: Float32  # (C, H, W), noise predicted with the label "healthy"
    eps_null: Float32  # (C, H, W), noise predicted with the null label

    def HGP(self, w: float) -> Float32:
        """Healthy-guided prediction of the clean slice (eqs. 6, 7), (C, H, W)."""
        eps_w = np.float32(1 + w) * self.eps_healthy - np.float32(w) * self.eps_null
        return self._clean(eps_w)

    def UGP(self) -> Float32:
        """Unguided prediction of the clean slice (eq. 10), (C, H, W)."""
        return self._clean(self.eps_null)

    def _clean(self, eps: Float32) -> Float32:
        noise = np.float32(math.sqrt(1 - self.abar)) * eps
        clean = np.asarray((self.x_t - noise) / np.float32(math.sqrt(self.abar)), np.float32)
        return np.clip(clean, -1, 1) if self.clip else clean


def noised(x0: Float32, noise: Float32, abar: float) -> Float32:
    """The slice at a timestep, straight from the clean one (eq. 2)."""
    return np.float32(math.sqrt(abar)) * x0 + np.float32(math.sqrt(1 - abar)) * noise


def ddim_step(x_t: Float32, UGP: Float32, abar_t: float, abar_next: float) -> Float32:
    """Deterministic encoding from one visited timestep to the next (eq. 4): the noise of x_t is
    what it holds beyond UGP, so that a clipped UGP counts. The first one is :func:`noised`."""
    direction = (x_t - np.float32(math.sqrt(abar_t)) * UGP) / np.float32(math.sqrt(1 - abar_t))
    clean = np.float32(math.sqrt(abar_next)) * UGP
    return np.asarray(clean + np.float32(math.sqrt(1 - abar_next)) * direction, np.float32)
