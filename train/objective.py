"""The training loss: its target, the contrast between labels, and the weights of timesteps."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from anofpdm.runtime.method.schedule import Schedule

from .batches import Batch
from .unet import HEALTHY, NULL, UNHEALTHY, UNet

_GAMMA, _LOG_ODDS = 5.0, 30.0
# The smallest timestep (0-based) with the contrast: with less noise, x_t alone determines x0.
_CONTRAST_FROM = 150


class DenoisingLoss(nn.Module):
    """Mean squared error of the network's prediction at x_t, drawn by eq. 2.

    With ``contrast`` above 0, labelled samples are predicted under the other label as well, and
    the cross-entropy of the label implied by the two errors is added (not in the paper). As in a
    diffusion classifier (Li et al. 2023), the label with the smaller error is the likelier one; the
    network learns the effect of labels faster than from the plain loss.

    Parameters
    ----------
    weighting : ``uniform`` or ``min-snr``, see :func:`timestep_weights`
    contrast : weight of that cross-entropy
    """

    sqrt_abar: Tensor
    sqrt_rest: Tensor
    weights: Tensor | None

    def __init__(self, unet: UNet, weighting: str = "uniform", contrast: float = 0.0) -> None:
        super().__init__()
        self.unet, self.contrast = unet, contrast
        abar = torch.from_numpy(Schedule().abar)
        self.register_buffer("sqrt_abar", abar.sqrt().float(), persistent=False)
        self.register_buffer("sqrt_rest", (1 - abar).sqrt().float(), persistent=False)
        weights = None
        if weighting != "uniform":
            by_timestep = timestep_weights(weighting, unet.config.prediction, Schedule())
            weights = torch.from_numpy(by_timestep).float()
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        a, b = (s[batch.t][:, None, None, None] for s in (self.sqrt_abar, self.sqrt_rest))
        x_t = a * batch.x0 + b * batch.noise
        prediction, target = self.unet.config.prediction, batch.noise
        if prediction == "v":
            target = a * batch.noise - b * batch.x0
        elif prediction == "x0":
            target = batch.x0
        if not self.contrast:
            return self._weighted(self._errors(x_t, batch.t, batch.label, target), batch.t)
        labelled = torch.nonzero((batch.label != NULL) & (batch.t >= _CONTRAST_FROM))[:, 0]
        both = torch.cat([torch.arange(len(x_t), device=x_t.device), labelled])
        labels = torch.cat([batch.label, HEALTHY + UNHEALTHY - batch.label[labelled]])
        errors = self._errors(x_t[both], batch.t[both], labels, target[both])
        given, other = errors[: len(x_t)], errors[len(x_t) :]
        loss = self._weighted(given, batch.t)
        return loss + self.contrast * label_entropy(given[labelled], other)

    def _errors(self, x_t: Tensor, t: Tensor, label: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of each sample: (B,)."""
        predicted = self.unet.body(x_t, t, self.unet.label_rows(), label)
        return (predicted.float() - target).square().mean(dim=(1, 2, 3))

    def _weighted(self, errors: Tensor, t: Tensor) -> Tensor:
        return errors.mean() if self.weights is None else (self.weights[t] * errors).mean()


def label_entropy(given: Tensor, other: Tensor) -> Tensor:
    """Mean cross-entropy of the right label; 0 for n = 0.

    A relative difference d of the errors makes log odds of 30 d.

    Parameters
    ----------
    given, other : (n,) squared errors under the right label and under the other one
    """
    odds = _LOG_ODDS * (other - given) / given.detach()
    return F.softplus(-odds).sum() / max(len(odds), 1)


def timestep_weights(weighting: str, prediction: str, schedule: Schedule) -> NDArray[np.float64]:
    """The weights of squared errors by timestep: (T,) float64 with mean 1.

    ``uniform``: 1. ``min-snr`` (Hang et al. 2023): min(SNR, 5) on the error of x0, where SNR =
    abar / (1 - abar). The error of eps is SNR times that of x0, the error of v is SNR + 1 times.
    """
    if weighting == "uniform":
        return np.ones(schedule.T)
    snr = schedule.abar / (1 - schedule.abar)
    of_x0 = {"x0": 1.0, "eps": snr, "v": snr + 1}[prediction]
    weights = np.minimum(snr, _GAMMA) / of_x0
    return np.asarray(weights / weights.mean(), np.float64)
