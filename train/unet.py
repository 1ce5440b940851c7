"""The denoising U-Net of AnoFPDM, with the reference implementation's parameter names.

Names and shapes are those of the reference implementation, so that its ``state_dict`` loads. Three
options go beyond it and are off by default: ``patch`` folds ``patch x patch`` pixels into channels
before the first convolution (a cheaper network for CPUs), ``prediction`` lets the layers predict
x0, or v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans & Ho 2022), in place of eps, which
:meth:`UNet.forward` always returns, and ``label_in`` keeps the label out of the time embedding.

Labels are rows of a table of three (healthy, unhealthy, null), so the label path costs the same for
any number of samples.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anofpdm.runtime.method.schedule import Schedule

from .config import GROUPS, UNetConfig

HEALTHY, UNHEALTHY, NULL = 0, 1, 2
M = TypeVar("M", bound=nn.Module)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that computes in float32 when the network runs in float16."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype == torch.float16:
            return super().forward(input.float()).half()
        return super().forward(input)


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of the 0-based timestep: (B,) int -> (B, width) float32, cosines first."""
    half = width // 2
    frequency = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=t.device))
    angle = t[:, None].float() * frequency[None]
    return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1)


class ResBlock(nn.Module):
    """Norm, conv; norm, scale and shift from the embedding, SiLU, dropout, conv; residual."""

    def __init__(self, channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm(GROUPS, channels),
            nn.SiLU() if config.first_silu else nn.Identity(),
            nn.Conv2d(channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(4 * config.base_width, 2 * out_channels)
        )
        self.out_layers = nn.Sequential(
            GroupNorm(GROUPS, out_channels),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if out_channels != channels:
            self.skip_connection = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        for layer in list(self.out_layers)[1:]:
            h = layer(h)
        return torch.add(self.skip_connection(x), h)


class AttentionBlock(nn.Module):
    """Self-attention with context tokens of the label before its keys and values (section 3.2)."""

    def __init__(self, channels: int, heads: int, embedding: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.encoder_kv = nn.Conv1d(embedding, 2 * channels, 1)
        self.proj_out = _zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, label_rows: Tensor, which_row: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # The channels are ordered by head, and within each head q, k, v.
        qkv = self.qkv(self.norm(x).reshape(batch, channels, height * width))
        q, k, v = qkv.reshape(batch, self.heads, -1, height * width).chunk(3, dim=2)
        # The columns of the outer product c c^T are the context tokens of a label.
        context = self.encoder_kv(label_rows[:, :, None] * label_rows[:, None, :])
        context = context.reshape(len(label_rows), self.heads, -1, context.shape[-1])[which_row]
        context_k, context_v = context.chunk(2, dim=2)
        k = torch.cat([context_k, k], dim=3).transpose(2, 3)
        v = torch.cat([context_v, v], dim=3).transpose(2, 3)
        h = F.scaled_dot_product_attention(q.transpose(2, 3), k, v)
        h = h.transpose(2, 3).reshape(batch, channels, height * width)
        return torch.add(x, self.proj_out(h).reshape(batch, channels, height, width))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.op(x))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))


class UNet(nn.Module):
    """eps(x_t, t, label) as in the AnoFPDM paper; the layout is that of its reference code."""

    abar: Tensor
    rest: Tensor

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        base, embedding = config.base_width, 4 * config.base_width
        folded = config.patch**2
        out_channels = config.out_channels or config.in_channels
        self.time_embed = nn.Sequential(
            nn.Linear(base, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.label_emb = nn.Embedding(2, base)
        self.class_emb = nn.Sequential(
            nn.Linear(base, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        if config.prediction != "eps":
            abar = Schedule().abar
            self.register_buffer("abar", torch.from_numpy(abar).float(), persistent=False)
        if config.prediction == "x0":
            # In float32 1 - abar would lose half its digits at the first timesteps.
            self.register_buffer("rest", torch.from_numpy(1 - abar).float(), persistent=False)

        def res(channels: int, out: int) -> ResBlock:
            return ResBlock(channels, out, config)

        def attend(channels: int, size: int) -> list[nn.Module]:
            if size not in config.attention_resolutions:
                return []
            return [AttentionBlock(channels, config.num_heads, embedding)]

        size = config.image_size // config.patch
        channels = base * config.channel_mult[0]
        first = nn.Conv2d(config.in_channels * folded, channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        skips = [channels]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                block = [res(channels, base * mult), *attend(base * mult, size)]
                channels = base * mult
                self.input_blocks.append(nn.ModuleList(block))
                skips.append(channels)
            if level + 1 < len(config.channel_mult):
                self.input_blocks.append(nn.ModuleList([Downsample(channels)]))
                skips.append(channels)
                size //= 2
        self.middle_block = nn.ModuleList(
            [
                res(channels, channels),
                AttentionBlock(channels, config.num_heads, embedding),
                res(channels, channels),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                block = [res(channels + skips.pop(), base * mult), *attend(base * mult, size)]
                channels = base * mult
                if level and i == config.num_res_blocks:
                    block.append(Upsample(channels))
                    size *= 2
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(
            GroupNorm(GROUPS, channels),
            nn.SiLU() if config.first_silu else nn.Identity(),
            _zero(nn.Conv2d(channels, out_channels * folded, 3, padding=1)),
        )

    def label_rows(self) -> Tensor:
        """Label embeddings c, (3, 4 * base_width): healthy, unhealthy, and zeros for null."""
        labels = self.class_emb(self.label_emb.weight)
        return torch.cat([labels, torch.zeros_like(labels[:1])])

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Predict the noise in ``x_t``.

        Parameters
        ----------
        x_t : (B, C, H, W) float, the noisy slices
        t : (B,) int64 in 0..T-1, the 0-based timestep
        label : (B,) int64, ``HEALTHY``, ``UNHEALTHY`` or ``NULL``

        Returns
        -------
        eps : (B, C, H, W), in the type of ``x_t``
        """
        return self.predict(x_t, t, self.label_rows(), label)

    def predict(self, x_t: Tensor, t: Tensor, label_rows: Tensor, which_row: Tensor) -> Tensor:
        """As :meth:`forward`, with the label of sample b given as ``label_rows[which_row[b]]``."""
        return self.as_eps(self.body(x_t, t, label_rows, which_row), x_t, t)

    def as_eps(self, predicted: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The layers' prediction converted to the noise in ``x_t``."""
        if self.config.prediction == "eps":
            return predicted
        abar = self.abar[t][:, None, None, None]
        if self.config.prediction == "v":
            return abar.sqrt() * predicted + (1 - abar).sqrt() * x_t
        # The smallest value, at the first timestep, is 1e-4.
        rest = self.rest[t][:, None, None, None]
        return (x_t - abar.sqrt() * predicted) / rest.sqrt()

    def body(self, x_t: Tensor, t: Tensor, label_rows: Tensor, which_row: Tensor) -> Tensor:
        """The layers' prediction, eps, v or x0, in the type of ``x_t``; the loss compares it."""
        dtype = self.label_emb.weight.dtype
        emb = self.time_embed(timestep_embedding(t, self.config.base_width).to(dtype))
        if self.config.label_in == "both":
            emb = emb + label_rows[which_row]
        return self.layers(x_t, emb, label_rows, which_row)

    def layers(self, x_t: Tensor, emb: Tensor, label_rows: Tensor, which_row: Tensor) -> Tensor:
        """As :meth:`body`, with the embedding of time and label ``emb``, (B, 4 * base_width)."""
        h = x_t.to(self.label_emb.weight.dtype)
        if self.config.patch > 1:
            h = F.pixel_unshuffle(h, self.config.patch)
        skips = []
        for block in self.input_blocks:
            h = _run(block, h, emb, label_rows, which_row)
            skips.append(h)
        h = _run(self.middle_block, h, emb, label_rows, which_row)
        for block in self.output_blocks:
            h = _run(block, torch.cat([h, skips.pop()], dim=1), emb, label_rows, which_row)
        h = self.out(h)
        if self.config.patch > 1:
            h = F.pixel_shuffle(h, self.config.patch)
        return h.to(x_t.dtype)


def _run(block: nn.Module, h: Tensor, emb: Tensor, label_rows: Tensor, row: Tensor) -> Tensor:
    for layer in block.children():
        if isinstance(layer, ResBlock):
            h = layer(h, emb)
        elif isinstance(layer, AttentionBlock):
            h = layer(h, label_rows, row)
        else:
            h = layer(h)
    return h


def _zero(module: M) -> M:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
