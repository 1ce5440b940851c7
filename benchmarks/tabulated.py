"""Two exact simplifications that the export leaves out; ``graph.py`` measures what they would give.

Looked up for each of the 1000 timesteps and two labels is either what all residual blocks share,
SiLU(time embedding + label), or (``per_block``) the scale and shift of every one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anofpdm.export.both_labels import BothLabels
from anofpdm.runtime.method.schedule import Schedule
from anofpdm.train.unet import ResBlock, UNet, timestep_embedding


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
            label = self.label_rows if unet.config.label_in == "both" else 0 * self.label_rows
            table = F.silu(time[None] + label[:, None]).reshape(2 * self.T, -1)
            for block in unet.modules():
                if isinstance(block, ResBlock):
                    linear = block.emb_layers[1]
                    looked_up = _Table(linear(table)) if per_block else linear
                    block.emb_layers = nn.Sequential(looked_up)
        self.emb = nn.Identity() if per_block else _Table(table)

    def forward(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """As the network it stands for."""
        both, none = torch.cat([x_t, x_t]), torch.empty(0)  # folded attention needs no labels
        layers = self.unet.layers(both, self.emb(torch.cat([t, t + self.T])), none, none)
        eps = self.unet.as_eps(layers, both, torch.cat([t, t]))
        return eps[: t.shape[0]], eps[t.shape[0] :]
