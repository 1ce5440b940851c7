"""What users would run instead: the loop of the authors' reference implementation, in PyTorch.

Written from its description, not from its code, and as it is described: the whole batch stands at
one timestep; a step asks the network four times, once to move on (from x_{t-1}, with the network at
t), with the label *healthy* and without a label for the guided prediction, and with the label
*healthy* again for what it calls the unguided one; both predictions of every step are kept; t_e,
the map (without step t_e itself) and the threshold are chosen at the end. Shared with the runtime
are the network's weights and what is done with a finished map (quantile, median, components).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

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
    """A network (x_t, 0-based t, label) -> eps that counts how often it is asked."""

    network: Network
    evaluations: int = field(default=0)

    def __call__(self, x_t: Tensor, t: int, label: int) -> Tensor:
        self.evaluations += 1
        when = torch.full((len(x_t),), t - 1)
        return self.network(x_t, when, torch.full((len(x_t),), label))


@dataclass(frozen=True)
class Stored:
    """Both predictions of the clean slices at every timestep, (L, N, C, H, W) float32 each."""

    guided: Tensor
    unguided: Tensor


@dataclass(frozen=True)
class Selected:
    """Of N slices: ``M``, ``MSE_h``, ``MSE_0``: (N, L, C); ``t_e``: (N, C), timesteps; ``H``:
    (N, C, H, W); ``masks``: (N, H, W)."""

    M: NDArray[np.float64]
    MSE_h: NDArray[np.float64]
    MSE_0: NDArray[np.float64]
    t_e: NDArray[np.int64]
    H: NDArray[np.float32]
    masks: NDArray[np.bool_]


@torch.no_grad()
def forward_process(network: Counted, x0: Tensor, noise: Tensor, L: int, w: float) -> Stored:
    """Take a batch through the timesteps 1..L in DDIM encoding.

    Parameters
    ----------
    x0, noise : (N, C, H, W) float32
    """
    abar = [1.0, *Schedule().abar.tolist()]  # abar[t]
    guided, unguided = (torch.empty((L, *x0.shape)) for _ in range(2))
    x_t = x0
    for t in range(1, L + 1):
        x_t = _noised(x0, noise, abar[1]) if t == 1 else _next(network, x_t, t, abar)
        eps_healthy, eps_null = network(x_t, t, HEALTHY), network(x_t, t, NULL)
        guided[t - 1] = _clean(x_t, (1 + w) * eps_healthy - w * eps_null, abar[t])
        unguided[t - 1] = _clean(x_t, network(x_t, t, HEALTHY), abar[t])
    return Stored(guided, unguided)


def evaluations_a_slice(L: int) -> int:
    """Four a timestep; the first one is not moved to."""
    return 4 * L - 1


def _noised(x0: Tensor, noise: Tensor, abar: float) -> Tensor:
    return abar**0.5 * x0 + (1 - abar) ** 0.5 * noise


def _clean(x_t: Tensor, eps: Tensor, abar: float) -> Tensor:
    return ((x_t - (1 - abar) ** 0.5 * eps) / abar**0.5).clamp(-1, 1)


def _next(network: Counted, x: Tensor, t: int, abar: list[float]) -> Tensor:
    """From x_{t-1} to x_t."""
    before, after = abar[t - 1], abar[t]
    clean = _clean(x, network(x, t, HEALTHY), before)
    eps = (x - before**0.5 * clean) / (1 - before) ** 0.5
    return after**0.5 * clean + (1 - after) ** 0.5 * eps


def select(stored: Stored, x0: Tensor, M_max: NDArray[np.float64], a: float, b: float) -> Selected:
    """Choose t_e, maps and masks, when all steps are done.

    Parameters
    ----------
    M_max : (C,), the calibrated largest M of these predictions
    a, b : the smallest and largest quantile
    """
    M = _curve(stored.guided, stored.unguided)
    best = M.argmax(axis=1)
    H = np.zeros(x0.shape, np.float32)
    for n, c in np.ndindex(best.shape):
        # Step t_e itself is left out; of none there is no mean.
        if best[n, c]:
            S = (stored.guided[: best[n, c], n, c] - x0[n, c]) ** 2
            H[n, c] = S.mean(dim=0).numpy()
    clean = x0[None].expand_as(stored.guided)
    cuts = [threshold(h, m.max(axis=0), M_max, a, b).Q for h, m in zip(H, M, strict=True)]
    masks = [cut(median(h.mean(axis=0)), Q) for h, Q in zip(H, cuts, strict=True)]
    return Selected(
        M, _curve(stored.guided, clean), _curve(stored.unguided, clean), best + 1, H,
        np.array(masks),
    )  # fmt: skip


def _curve(one: Tensor, other: Tensor) -> NDArray[np.float64]:
    """(N, L, C): mean squares, step by step."""
    steps = [((a - b) ** 2).mean(dim=(2, 3)) for a, b in zip(one, other, strict=True)]
    return torch.stack(steps, dim=1).double().numpy()
