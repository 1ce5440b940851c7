"""The exported network, which predicts with both labels in one batch, and its reference."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anofpdm.runtime.backends.base import Denoiser
from anofpdm.train.unet import HEALTHY, NULL, GroupNorm, UNet

from .fold import fold


class BothLabels(nn.Module):
    """``(x_t, t) -> (eps_healthy, eps_null)``; the labels are constants, the batch doubles inside.

    Parameters
    ----------
    unet : the trained network; modified in place
    precision : ``fp32``, or ``fp16`` for a network in float16 whose group normalisations, inputs
        and outputs stay in float32
    folded : whether to apply the simplifications of :mod:`anofpdm.export.fold`
    """

    label_rows: Tensor

    def __init__(self, unet: UNet, precision: str, folded: bool = True) -> None:
        super().__init__()
        self.unet = unet.eval()
        rows = unet.label_rows().detach()[[HEALTHY, NULL]]
        if folded:
            fold(unet, rows[0])
        if precision == "fp16":
            buffers = {name: buffer.clone() for name, buffer in unet.named_buffers(recurse=False)}
            self.unet.half()
            rows = rows.half()
            for module in self.unet.modules():
                if isinstance(module, GroupNorm):
                    module.float()
            # abar near 1 would round to 1.
            for name, buffer in buffers.items():
                setattr(self.unet, name, buffer)
        self.register_buffer("label_rows", rows, persistent=False)

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Both predictions, (B, C, H, W), of x_t (B, C, H, W) float32, t (B,) int64, 0-based."""
        label = torch.cat([torch.zeros_like(t), torch.ones_like(t)])
        twice_x, twice_t = torch.cat([x_t, x_t]), torch.cat([t, t])
        eps = self.unet.predict(twice_x, twice_t, self.label_rows, label)
        # Slices, not chunk(2), which would fix the batch in the export.
        return eps[: t.shape[0]], eps[t.shape[0] :]


def torch_denoiser(unet: UNet) -> Denoiser:
    """The PyTorch network as a :class:`Denoiser`, called once for each label."""

    def denoise(
        x_t: NDArray[np.float32], t: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        x, t_0 = torch.from_numpy(x_t), torch.from_numpy(t - 1)  # 0-based
        with torch.no_grad():
            both = [unet(x, t_0, torch.full_like(t_0, label)) for label in (HEALTHY, NULL)]
        return both[0].numpy(), both[1].numpy()

    return denoise
