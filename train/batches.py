"""Training batches, each a function of (seed, step, rank) alone: resuming needs no saved state."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anofpdm.runtime.method.schedule import Schedule

from .augment import rough_brain_mask
from .config import TrainConfig
from .dataset import SliceSet
from .unet import NULL

_MAX_ROTATION, _SCALES, _MAX_SHIFT = np.deg2rad(10.0), (0.75, 1.1), 0.06


@dataclass(frozen=True)
class Batch:
    """B training samples."""

    x0: Tensor  # (B, C, H, W) float32 slices in [-1, 1]
    t: Tensor  # (B,) int64 timesteps, 0-based
    label: Tensor  # (B,) int64, HEALTHY, UNHEALTHY or NULL
    noise: Tensor  # (B, C, H, W) float32, standard normal


class Batches:
    """Draws batches from labelled slices.

    Parameters
    ----------
    rank, world : index of this process, and number of processes; each draws
        ``config.batch // world`` slices
    """

    def __init__(
        self, slices: SliceSet, config: TrainConfig, rank: int = 0, world: int = 1
    ) -> None:
        self._slices, self._config, self._rank = slices, config, rank
        self._size = config.batch // world
        unhealthy = slices.unhealthy
        self._healthy, self._unhealthy = np.flatnonzero(~unhealthy), np.flatnonzero(unhealthy)
        self._T = Schedule().T

    def __getitem__(self, step: int) -> Batch:
        """The batch of iteration ``step`` (0-based), on the CPU."""
        config = self._config
        rng = np.random.Generator(np.random.Philox(key=[config.seed, 2**32 * self._rank + step]))
        indices = self._choose(rng)
        label = self._slices.unhealthy[indices].astype(np.int64)
        label[rng.random(self._size) < config.label_dropout] = NULL
        focus = rng.random(self._size) < config.focus_share
        t = np.where(
            focus,
            rng.integers(config.focus_t, size=self._size),
            rng.integers(self._T, size=self._size),
        )
        x0 = torch.from_numpy(np.stack([self._load(int(i), rng) for i in indices]))
        if config.affine:
            x0 = self._transform(x0, rng)
        noise = rng.standard_normal(x0.shape, dtype=np.float32)
        return Batch(x0, torch.from_numpy(t), torch.from_numpy(label), torch.from_numpy(noise))

    def _choose(self, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        share = self._config.unhealthy_share
        if share < 0 or not len(self._healthy) or not len(self._unhealthy):
            return rng.integers(len(self._slices), size=self._size)
        return np.where(
            rng.random(self._size) < share,
            rng.choice(self._unhealthy, self._size),
            rng.choice(self._healthy, self._size),
        )

    def _load(
        self, index: int, rng: np.random.Generator
    ) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
        config = self._config
        x0 = self._slices.x0(index)
        strip, flip, gain, gamma = rng.random(4)
        if strip < config.strip:
            brain = rough_brain_mask(x0[0], self._slices.grid.pixel_mm)
            x0 = np.where(brain, x0, np.float32(-1))
        if config.gain:
            scale = 1 + config.gain * (2 * gain - 1)
            exponent = 1 + config.gain / 2 * (2 * gamma - 1)
            x0 = (2 * np.clip(scale * ((x0 + 1) / 2) ** exponent, 0, 1) - 1).astype(np.float32)
        if config.bias:
            field = _smooth_field(x0.shape[1:], rng)
            x0 = np.clip((x0 + 1) * np.exp(config.bias * field) - 1, -1, 1)
        # The first image axis runs from the patient's left to right.
        return np.ascontiguousarray(x0[:, ::-1]) if config.flip and flip < 0.5 else x0

    def _transform(self, x0: Tensor, rng: np.random.Generator) -> Tensor:
        """Rotate, scale and shift a share of the slices; what comes in is background (-1)."""
        angle = rng.uniform(-_MAX_ROTATION, _MAX_ROTATION, self._size)
        # affine_grid maps output to input, so the scale is inverted.
        zoom = 1 / rng.uniform(*_SCALES, self._size)
        shift = rng.uniform(-2 * _MAX_SHIFT, 2 * _MAX_SHIFT, (self._size, 2))
        moved = np.flatnonzero(rng.random(self._size) < self._config.affine)
        if not len(moved):
            return x0
        cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
        theta = np.stack(
            [np.stack([cos, -sin, shift[:, 0]], -1), np.stack([sin, cos, shift[:, 1]], -1)], 1
        )[moved]
        shape = (len(moved), *x0.shape[1:])
        sampling = F.affine_grid(torch.from_numpy(theta.astype(np.float32)), list(shape), False)
        x0[moved] = F.grid_sample(x0[moved] + 1, sampling, align_corners=False) - 1
        return x0


def _smooth_field(
    shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """A random quadratic over the image, (H, W) in [-1, 1]."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    terms = np.stack([y, x, y * x, y * y, x * x])
    weights = rng.dirichlet(np.ones(len(terms))) * rng.choice([-1, 1], len(terms))
    return np.asarray(np.einsum("n,nyx->yx", weights, terms), np.float32)
