"""Networks that benchmarks export."""

from __future__ import annotations

import torch

from anofpdm.train.config import UNetConfig, unet_config
from anofpdm.train.unet import UNet

LIGHT = unet_config("light", 1, 128)
SMALL = UNetConfig(
    in_channels=2, image_size=64, base_width=32, channel_mult=(1, 2, 2, 3), num_res_blocks=1,
    attention_resolutions=(16, 8),
)  # fmt: skip
FULL = UNetConfig(in_channels=4)


def randomised(config: UNetConfig, seed: int = 0, scale: float = 0.01) -> UNet:
    """A network whose layers that begin as zeros are not zero."""
    torch.manual_seed(seed)
    unet = UNet(config).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return unet


def parameters(unet: UNet) -> float:
    """Millions of them."""
    return sum(parameter.numel() for parameter in unet.parameters()) / 1e6
