"""Networks that benchmarks export, and the machine they run on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from anofpdm.train.config import unet_config
from anofpdm.train.unet import UNet, UNetConfig

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


def machine() -> dict[str, object]:
    """What a figure depends on; nothing that names the machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "other_load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "onnx", "onnxruntime")},
    }


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
