"""The loop of the authors' reference implementation in PyTorch, written from its description.

The whole batch stands at one timestep. A step evaluates the network four times: once to move on
(from x_{t-1}, at t), with the label *healthy* and without a label for the guided prediction, and
with *healthy* again for the prediction that it calls unguided. Both predictions of every step are
stored; t_e, the map (without step t_e itself) and the threshold are chosen at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anofpdm.runtime.method.schedule import Schedule
from anofpdm.runtime.method.threshold import threshold
from anofpdm.runtime.refine.masks import cut, median
from anofpdm.train.unet import HEALTHY, NULL

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Counted:
    """A network (x_t, 0-based t, label) -> eps that counts its evaluations."""

    network: Network
    evaluations: int = 0

    def __call__(self, x_t: Tensor, t: int, label: int) -> Tensor:
        self.evaluations += 1
        steps, labels = torch.full((len(x_t),), t - 1), torch.full((len(x_t),), label)
        return self.network(x_t, steps, labels)


@dataclass(frozen=True)
class Stored:
    """Both predictions of the clean slices at every timestep, (L, N, C, H, W) float32 each."""

    guided: Tensor
    unguided: Tensor


@dataclass(frozen=True)
class Selected:
    """Curves, maps and masks of N slices."""

    M: NDArray[np.float64]  # divergence, (N, L, C)
    MSE_h: NDArray[np.float64]  # error of the guided prediction, (N, L, C)
    MSE_0: NDArray[np.float64]  # error of the unguided prediction, (N, L, C)
    t_e: NDArray[np.int64]  # timesteps from 1, (N, C)
    H: NDArray[np.float32]  # anomaly maps, (N, C, H, W)
    masks: NDArray[np.bool_]  # (N, H, W)


@torch.no_grad()
def forward_process(network: Counted, x0: Tensor, noise: Tensor, L: int, w: float) -> Stored:
    """Take a batch ``x0`` (N, C, H, W), with ``noise`` like it, through the timesteps 1..L in DDIM
    encoding."""
    abar = [1.0, *Schedule().abar.tolist()]  # abar[t]
    guided, unguided = (torch.empty((L, *x0.shape)) for _ in range(2))
    x_t = abar[1] ** 0.5 * x0 + (1 - abar[1]) ** 0.5 * noise
    for t in range(1, L + 1):
        x_t = _next(network, x_t, t, abar) if t > 1 else x_t
        eps_healthy, eps_null = network(x_t, t, HEALTHY), network(x_t, t, NULL)
        guided[t - 1] = _clean(x_t, (1 + w) * eps_healthy - w * eps_null, abar[t])
        unguided[t - 1] = _clean(x_t, network(x_t, t, HEALTHY), abar[t])
    return Stored(guided, unguided)


def evaluations_a_slice(L: int) -> int:
    """Four a timestep, three at the first."""
    return 4 * L - 1


def _clean(x_t: Tensor, eps: Tensor, abar: float) -> Tensor:
    return ((x_t - (1 - abar) ** 0.5 * eps) / abar**0.5).clamp(-1, 1)


def _next(network: Counted, x: Tensor, t: int, abar: list[float]) -> Tensor:
    """From x_{t-1} to x_t."""
    clean = _clean(x, network(x, t, HEALTHY), abar[t - 1])
    eps = (x - abar[t - 1] ** 0.5 * clean) / (1 - abar[t - 1]) ** 0.5
    return abar[t] ** 0.5 * clean + (1 - abar[t]) ** 0.5 * eps


def select(stored: Stored, x0: Tensor, M_max: NDArray[np.float64], a: float, b: float) -> Selected:
    """Choose t_e, maps and masks. ``M_max``: (C,), calibrated; ``a``, ``b``: of the quantiles."""
    M = _curve(stored.guided, stored.unguided)
    best = M.argmax(axis=1)
    H = np.zeros(x0.shape, np.float32)
    for n, c in np.ndindex(best.shape):
        if best[n, c]:  # at the first step there is nothing to average
            S = (stored.guided[: best[n, c], n, c] - x0[n, c]) ** 2
            H[n, c] = S.mean(dim=0).numpy()
    clean = x0[None].expand_as(stored.guided)
    Q = [threshold(h, m.max(axis=0), M_max, a, b).Q for h, m in zip(H, M, strict=True)]
    masks = np.array([cut(median(h.mean(axis=0)), q) for h, q in zip(H, Q, strict=True)])
    MSE_h, MSE_0 = _curve(stored.guided, clean), _curve(stored.unguided, clean)
    return Selected(M, MSE_h, MSE_0, best + 1, H, masks)


def _curve(first: Tensor, second: Tensor) -> NDArray[np.float64]:
    """(N, L, C): mean squared differences, step by step."""
    steps = [((a - b) ** 2).mean(dim=(2, 3)) for a, b in zip(first, second, strict=True)]
    return torch.stack(steps, dim=1).double().numpy()
