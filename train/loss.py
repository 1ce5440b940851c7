"""The loss: what the network's prediction is compared with, and what a timestep weighs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anofpdm.runtime.schedule import Schedule

from .batches import Batch
from .unet import UNet

_GAMMA = 5.0


class DenoisingLoss(nn.Module):
    """Mean squared error of the network's prediction at x_t, drawn by eq. 2.

    ``weighting``: see :func:`timestep_weights`.
    """

    sqrt_abar: Tensor
    sqrt_rest: Tensor
    weights: Tensor | None

    def __init__(self, unet: UNet, weighting: str = "uniform") -> None:
        super().__init__()
        self.unet = unet
        abar = torch.from_numpy(Schedule().abar)
        self.register_buffer("sqrt_abar", abar.sqrt().float(), persistent=False)
        self.register_buffer("sqrt_rest", (1 - abar).sqrt().float(), persistent=False)
        weights = None
        if weighting != "uniform":
            found = timestep_weights(weighting, unet.config.prediction, Schedule())
            weights = torch.from_numpy(found).float()
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        a, b = (s[batch.t][:, None, None, None] for s in (self.sqrt_abar, self.sqrt_rest))
        x_t = a * batch.x0 + b * batch.noise
        predicted = self.unet.body(x_t, batch.t, self.unet.label_rows(), batch.label)
        prediction, target = self.unet.config.prediction, batch.noise
        if prediction == "v":
            target = a * batch.noise - b * batch.x0
        elif prediction == "x0":
            target = batch.x0
        error = (predicted.float() - target).square()
        if self.weights is None:
            return error.mean()
        return (self.weights[batch.t] * error.mean(dim=(1, 2, 3))).mean()


def timestep_weights(weighting: str, prediction: str, schedule: Schedule) -> NDArray[np.float64]:
    """What the squared error of a sample at each timestep weighs: (T,) float64 with mean 1.

    ``uniform``: 1. ``min-snr`` (Hang et al. 2023): min(SNR, 5) on the error of x0, where SNR =
    abar / (1 - abar). The error of eps is SNR times that of x0, the error of v is SNR + 1 times.
    """
    if weighting == "uniform":
        return np.ones(schedule.T)
    snr = schedule.abar / (1 - schedule.abar)
    of_x0 = {"x0": 1.0, "eps": snr, "v": snr + 1}[prediction]
    weights = np.minimum(snr, _GAMMA) / of_x0
    return np.asarray(weights / weights.mean(), np.float64)
