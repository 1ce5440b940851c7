import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import shared
from transcription import alpha_bar

from anofpdm.train.config import UNetConfig, unet_config
from anofpdm.train.unet import HEALTHY, NULL, UNHEALTHY, AttentionBlock, UNet, timestep_embedding

LABELS = {"eps_healthy": HEALTHY, "eps_unhealthy": UNHEALTHY, "eps_null": NULL}


def randomised(config, seed=0):
    """A network without layers that are zero."""
    torch.manual_seed(seed)
    unet = UNet(config).eval()
    for parameter in unet.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return unet


@pytest.mark.shared
def test_the_reference_implementations_weights_give_its_outputs():
    folder = shared("fixtures", "reference-unet")
    described = json.loads((folder / "unet.json").read_text())
    expected = np.load(folder / "unet_eps.npz")
    unet = UNet(
        UNetConfig(
            in_channels=described["in_channels"],
            out_channels=expected["eps_null"].shape[1],
            image_size=described["image_size"],
            base_width=described["num_channels"],
            channel_mult=tuple(int(m) for m in described["channel_mult"].split(",")),
            num_res_blocks=described["num_res_blocks"],
            attention_resolutions=tuple(
                int(r) for r in described["attention_resolutions"].split(",")
            ),
            num_heads=described["num_heads"],
        )
    ).eval()
    unet.load_state_dict(torch.load(folder / "unet.pt", weights_only=True))
    x_t, t = torch.from_numpy(expected["x_t"]), torch.from_numpy(expected["t"])
    for name, label in LABELS.items():
        with torch.no_grad():
            eps = unet(x_t, t, torch.full_like(t, label))
        np.testing.assert_allclose(eps.numpy(), expected[name], atol=1e-5)


def test_the_reference_configuration_has_103_million_parameters():
    with torch.device("meta"):
        unet = UNet(UNetConfig(in_channels=4))
    assert sum(p.numel() for p in unet.parameters()) / 1e6 == pytest.approx(103.08, abs=0.005)


def test_timestep_embedding_is_cosines_then_sines():
    got = timestep_embedding(torch.tensor([0, 7, 999]), 8)
    frequency = 10000.0 ** (-np.arange(4) / 4)
    angle = np.array([[0], [7], [999]]) * frequency
    want = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_attention_is_softmax_over_label_tokens_and_pixels():
    """Written out with loops for one sample."""
    unet = randomised(UNetConfig(1, image_size=16, base_width=32, channel_mult=(1,),
                                 num_res_blocks=1, attention_resolutions=(16,),
                                 num_heads=2))  # fmt: skip
    block = unet.middle_block[1]
    x = torch.randn(1, 32, 4, 4)
    rows = unet.label_rows().detach()
    with torch.no_grad():
        got = block(x, rows, torch.tensor([UNHEALTHY]))
        normed = F.group_norm(x, 32, block.norm.weight, block.norm.bias).reshape(32, 16)
        qkv = block.qkv.weight[..., 0] @ normed + block.qkv.bias[:, None]
        c = rows[UNHEALTHY]
        tokens = (
            block.encoder_kv.weight[..., 0] @ torch.outer(c, c) + block.encoder_kv.bias[:, None]
        )
        out = torch.empty(32, 16)
        for head in range(2):
            q, k, v = qkv[48 * head : 48 * head + 48].split(16)
            key, value = tokens[32 * head : 32 * head + 32].split(16)
            k, v = torch.cat([key, k], 1), torch.cat([value, v], 1)
            out[16 * head : 16 * head + 16] = v @ torch.softmax(q.T @ k / 4.0, dim=1).T
        want = x + (block.proj_out.weight[..., 0] @ out + block.proj_out.bias[:, None]).reshape(
            1, 32, 4, 4
        )
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_every_prediction_returns_eps(prediction):
    config = unet_config("light", 1, 32, base_width=32, prediction=prediction)
    unet = randomised(config)
    when = (0, 3, 700, 999)
    x_t, t = torch.randn(4, 1, 32, 32), torch.tensor(when)
    label = torch.tensor([HEALTHY, NULL, HEALTHY, UNHEALTHY])
    with torch.no_grad():
        body = unet.body(x_t, t, unet.label_rows(), label).double()
        eps = unet(x_t, t, label).double()
    abar = torch.tensor([alpha_bar()[i] for i in when], dtype=torch.float64)
    abar = abar[:, None, None, None]
    # From x_t = sqrt(abar) x0 + sqrt(1 - abar) eps.
    x0 = (x_t - (1 - abar).sqrt() * eps) / abar.sqrt()
    want = {"eps": eps, "v": abar.sqrt() * eps - (1 - abar).sqrt() * x0, "x0": x0}[prediction]
    torch.testing.assert_close(body, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("label_in", ["both", "attention"])
def test_where_the_label_enters(label_in):
    """With no weight on the label's tokens, it says something through the time embedding alone."""
    unet = randomised(unet_config("light", 1, 32, base_width=32, label_in=label_in))
    unet.class_emb[2].weight.data.mul_(10)
    x_t, t = torch.randn(1, 1, 32, 32), torch.tensor([300])

    def apart():
        with torch.no_grad():
            eps = [unet(x_t, t, torch.tensor([label])) for label in (HEALTHY, NULL)]
        return float((eps[0] - eps[1]).abs().max())

    assert apart() > 1e-3
    for block in unet.modules():
        if isinstance(block, AttentionBlock):
            block.encoder_kv.weight.data.zero_()
    assert (apart() > 1e-3) == (label_in == "both")


def test_samples_do_not_see_each_other():
    unet = randomised(unet_config("light", 2, 32, base_width=32))
    x_t, t = torch.randn(3, 2, 32, 32), torch.tensor([1, 500, 900])
    label = torch.tensor([HEALTHY, UNHEALTHY, NULL])
    with torch.no_grad():
        together = unet(x_t, t, label)
        alone = torch.cat([unet(x_t[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "change", [{"prediction": "x"}, {"base_width": 40}, {"image_size": 100}, {"label_in": "time"}]
)
def test_impossible_shapes(change):
    with pytest.raises(ValueError, match="must be"):
        UNetConfig(**{"in_channels": 1, **change})
