"""Two exact simplifications that the export leaves out; ``graph.py`` measures what they would give.

Looked up for each of the 1000 timesteps and two labels is either what all residual blocks share,
SiLU(time embedding + label), or (``per_block``) the scale and shift of every one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anofpdm.export.network import BothLabels
from anofpdm.runtime.schedule import Schedule
from anofpdm.train.unet import ResBlock, UNet, _run, timestep_embedding


class _Table(nn.Module):
    rows: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.rows)


class Tabulated(BothLabels):
    """The folded network with a table in the place of the time and label embedding."""

    def __init__(self, unet: UNet, per_block: bool) -> None:
        super().__init__(unet, "fp32")
        self.T = Schedule().T
        with torch.no_grad():
            time = unet.time_embed(timestep_embedding(torch.arange(self.T), unet.config.base_width))
            table = F.silu(time[None] + self.label_rows[:, None]).reshape(2 * self.T, -1)
            for block in unet.modules():
                if isinstance(block, ResBlock):
                    linear = block.emb_layers[1]
                    looked_up = _Table(linear(table)) if per_block else linear
                    block.emb_layers = nn.Sequential(looked_up)
        self.emb = nn.Identity() if per_block else _Table(table)

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """As the network it stands for."""
        unet, patch = self.unet, self.unet.config.patch
        emb = self.emb(torch.cat([t, t + self.T]))
        x = torch.cat([x_t, x_t])
        none = torch.empty(0)
        h, skips = F.pixel_unshuffle(x, patch) if patch > 1 else x, []
        for block in unet.input_blocks:
            h = _run(block, h, emb, none, none)
            skips.append(h)
        h = _run(unet.middle_block, h, emb, none, none)
        for block in unet.output_blocks:
            h = _run(block, torch.cat([h, skips.pop()], dim=1), emb, none, none)
        h = unet.out(h)
        h = F.pixel_shuffle(h, patch) if patch > 1 else h
        if unet.config.prediction == "v":
            abar = unet.abar[torch.cat([t, t])][:, None, None, None]
            h = abar.sqrt() * h + (1 - abar).sqrt() * x
        return h[: t.shape[0]], h[t.shape[0] :]
