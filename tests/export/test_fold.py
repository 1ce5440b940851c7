import copy
import math

import pytest
import torch

from anofpdm.export import fold
from anofpdm.export.both_labels import BothLabels
from anofpdm.train.config import UNetConfig, unet_config
from anofpdm.train.unet import HEALTHY, NULL, AttentionBlock, UNet

SMALL = UNetConfig(2, 16, 32, (1, 2), 1, (16, 8), num_heads=4)
CONFIGS = [
    SMALL,
    UNetConfig(1, 16, 64, (1, 1), 2, (8,), num_heads=2, out_channels=1, first_silu=True),
    unet_config("light", 1, 32, base_width=32),
    unet_config("light", 1, 32, base_width=32, label_in="attention", prediction="x0"),
]


def network(config=SMALL, scale=0.1):
    """Labels and attention matter in it: nothing is zero."""
    torch.manual_seed(0)
    unet = UNet(config).eval()
    for parameter in unet.parameters():
        parameter.data.add_(scale * torch.randn_like(parameter))
    return unet


def inputs(config, batch=3):
    torch.manual_seed(1)
    size = config.image_size
    return torch.randn(batch, config.in_channels, size, size), torch.randint(0, 1000, (batch,))


def apart(unet, network, x_t, t):
    """Largest difference from ``unet`` evaluated label by label, relative to its largest value."""
    worst = 0.0
    with torch.no_grad():
        for label, eps in zip((HEALTHY, NULL), network(x_t, t), strict=True):
            want = unet(x_t, t, torch.full_like(t, label))
            assert torch.isfinite(eps).all()
            worst = max(worst, float((eps - want).abs().max() / want.abs().max()))
    return worst


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_folded_network_is_the_network(config, batch):
    unet = network(config)
    folded = BothLabels(copy.deepcopy(unet), "fp32")
    assert not any(isinstance(module, AttentionBlock) for module in folded.modules())
    assert apart(unet, folded, *inputs(config, batch)) < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_it_can_be_left_unfolded(config):
    unet = network(config)
    plain = BothLabels(copy.deepcopy(unet), "fp32", folded=False)
    assert any(isinstance(module, AttentionBlock) for module in plain.modules())
    assert apart(unet, plain, *inputs(config)) < 1e-5


def test_the_network_needs_every_part_of_it():
    """What the comparison would miss if the labels or the weight of the tokens did not matter."""
    unet = network()
    x_t, t = inputs(SMALL)
    for break_it in (
        lambda block: setattr(block, "copies", 1),
        lambda block: block.null_kv.zero_(),
        lambda block: block.healthy_kv.copy_(block.null_kv.expand_as(block.healthy_kv)),
    ):
        folded = BothLabels(copy.deepcopy(unet), "fp32")
        for block in folded.modules():
            if isinstance(block, fold.FoldedAttention):
                break_it(block)
        assert apart(unet, folded, x_t, t) > 1e-3


def test_the_null_label_attends_to_one_token():
    """As many equal tokens as the embedding is wide, written out."""
    unet = network()
    block = unet.middle_block[1]
    row = unet.label_rows().detach()[HEALTHY]
    folded = fold.FoldedAttention(block, row)
    assert folded.null_kv.shape[3] == 1
    assert folded.healthy_kv.shape[3] == len(row) == folded.copies == 128
    torch.manual_seed(2)
    q, k, v = torch.randn(3, 1, 1, 8, 5)
    token = torch.randn(1, 1, 16, 1)
    logit = torch.zeros(6)
    logit[0] = math.log(128)
    got = fold._attend(torch.cat([q, k, v], 2), token, logit)[0, 0]
    keys = torch.cat([token[0, 0, :8].expand(-1, 128), k[0, 0]], 1)
    values = torch.cat([token[0, 0, 8:].expand(-1, 128), v[0, 0]], 1)
    want = torch.softmax(q[0, 0].T @ keys, 1) @ values.T
    torch.testing.assert_close(got, want)


def test_half_precision():
    unet = network(scale=0.03)
    folded = BothLabels(copy.deepcopy(unet), "fp16")
    tokens = [buffer for name, buffer in folded.named_buffers() if name.endswith("_kv")]
    assert len(tokens) == 2 * 7
    assert all(buffer.dtype == torch.float16 for buffer in tokens)
    assert apart(unet, folded, *inputs(SMALL)) < 2e-2


def test_large_logits_do_not_overflow_in_half_precision():
    unet = network(scale=0.03)
    with torch.no_grad():
        for block in unet.modules():
            if isinstance(block, AttentionBlock):
                block.qkv.weight.mul_(3)
                block.encoder_kv.bias.mul_(3)
    logits = []
    folded = BothLabels(copy.deepcopy(unet), "fp16")
    softmax = torch.softmax

    def watched(values, dim):
        logits.append(float(values.max()))
        return softmax(values, dim)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold.torch, "softmax", watched)
        error = apart(unet, folded, *inputs(SMALL))
    assert max(logits) > math.log(torch.finfo(torch.float16).max)
    assert error < 2e-2
