"""Exact simplifications of the U-Net for the two labels of the export, healthy and null.

The label row c of *healthy* is a constant, so the keys and values of its context tokens are
constants too. The null label's row is zero: its 4 * base_width context tokens are all the same,
the bias of ``encoder_kv``, and n equal tokens weigh as much in a softmax as one whose logit is
higher by ln(n).
"""

import math

import torch
from torch import Tensor, nn

from anofpdm.train.unet import AttentionBlock, UNet


class FoldedAttention(nn.Module):
    """An :class:`AttentionBlock` for a batch whose first half is healthy, the second null.

    ``healthy_row``: (4 * base_width,), the label embedding c. The scale ch^-0.25 of queries and
    keys is folded into the weights.
    """

    healthy_kv: Tensor
    null_kv: Tensor

    def __init__(self, block: AttentionBlock, healthy_row: Tensor) -> None:
        super().__init__()
        self.heads, self.norm, self.proj_out = block.heads, block.norm, block.proj_out
        self.qkv = nn.Conv1d(block.qkv.in_channels, block.qkv.out_channels, 1)
        head = block.qkv.in_channels // self.heads
        # The channels are ordered by head: q, k, v each, and k, v for the context.
        scale = torch.tensor([head**-0.25, head**-0.25, 1.0]).repeat_interleave(head)
        of_pixels, of_tokens = scale.repeat(self.heads), scale[head:].repeat(self.heads)
        pixel_bias, token_bias = block.qkv.bias, block.encoder_kv.bias
        assert pixel_bias is not None
        assert token_bias is not None
        with torch.no_grad():
            self.qkv.weight.copy_(block.qkv.weight * of_pixels[:, None, None])
            self.qkv.bias = nn.Parameter(pixel_bias * of_pixels)
            weight = block.encoder_kv.weight[..., 0] * of_tokens[:, None]
            null = (token_bias * of_tokens)[:, None]
            # W (c c^T) = (W c) c^T
            healthy = torch.outer(weight @ healthy_row, healthy_row) + null
        self.copies = len(healthy_row)
        for name, tokens in (("healthy_kv", healthy), ("null_kv", null)):
            tokens = tokens.reshape(1, self.heads, 2 * head, -1).clone()
            self.register_buffer(name, tokens, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (2B, channels, H, W), healthy before null -> the same shape."""
        batch, channels, height, width = x.shape
        pixels = height * width
        qkv = self.qkv(self.norm(x).reshape(batch, channels, pixels))
        qkv = qkv.reshape(batch, self.heads, -1, pixels)
        half = batch // 2
        logit = torch.zeros(1 + pixels, dtype=x.dtype)
        logit[0] = math.log(self.copies)
        # Slices, not chunk(2), which would fix the batch in the export.
        h = torch.cat(
            [
                _attend(qkv[:half], self.healthy_kv),
                _attend(qkv[half:], self.null_kv, logit),
            ]
        )
        h = h.transpose(2, 3).reshape(batch, channels, pixels)
        return torch.add(x, self.proj_out(h).reshape(batch, channels, height, width))


def _attend(qkv: Tensor, context_kv: Tensor, logit: Tensor | None = None) -> Tensor:
    """qkv (B, heads, 3 ch, N), context (1, heads, 2 ch, n), logit (n + N,) -> (B, heads, N, ch)."""
    head = qkv.shape[2] // 3
    q, kv = torch.split(qkv, [head, 2 * head], dim=2)
    k, v = torch.cat([context_kv.expand(qkv.shape[0], -1, -1, -1), kv], dim=3).chunk(2, dim=2)
    logits = q.transpose(2, 3) @ k
    if logit is not None:
        logits = logits + logit
    return torch.softmax(logits, dim=3) @ v.transpose(2, 3)


def fold(unet: UNet, healthy_row: Tensor) -> None:
    """Replace every attention block, in place; ``unet`` then takes batches (healthy, null) only.

    Parameters
    ----------
    healthy_row : (4 * base_width,) float32
    """
    for parent in list(unet.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AttentionBlock):
                setattr(parent, name, FoldedAttention(child, healthy_row))
