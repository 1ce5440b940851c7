"""Contrast: the label that errors imply, against closed forms and a network that is known."""

import numpy as np
import pytest
import torch

from anofpdm.train.batches import Batch
from anofpdm.train.config import UNetConfig
from anofpdm.train.objective import DenoisingLoss, label_entropy
from anofpdm.train.unet import HEALTHY, NULL, UNHEALTHY


class Stub(torch.nn.Module):
    """Misses the target by an amount that depends on the label alone: healthy 0.5, unhealthy 0.75,
    null 1, and records its calls."""

    def __init__(self, batch):
        super().__init__()
        self.config = UNetConfig(1, image_size=32, base_width=32, channel_mult=(1,))
        self.missed = torch.nn.Parameter(torch.tensor([0.5, 0.75, 1.0]))
        self.noise, self.calls = batch.noise, []

    def label_rows(self):
        return torch.zeros(3, 4)

    def body(self, x_t, t, label_rows, which_row):
        self.calls.append((t.tolist(), which_row.tolist()))
        # Which sample a row is: its timestep is its own.
        noise = torch.stack([self.noise[self.order[int(step)]] for step in t])
        return noise + self.missed[which_row][:, None, None, None]


def drawn():
    t = torch.tensor([100, 200, 300, 400, 500])
    label = torch.tensor([HEALTHY, HEALTHY, UNHEALTHY, NULL, UNHEALTHY])
    rng = np.random.default_rng(0)
    x0, noise = (torch.from_numpy(rng.standard_normal((5, 1, 4, 4), np.float32)) for _ in "ab")
    batch = Batch(x0, t, label, noise)
    stub = Stub(batch)
    stub.order = {int(step): i for i, step in enumerate(t)}
    return batch, stub


def test_labelled_samples_with_enough_noise_are_seen_under_both_labels():
    batch, stub = drawn()
    DenoisingLoss(stub, contrast=0.1)(batch)
    ((t, label),) = stub.calls
    assert t == [100, 200, 300, 400, 500, 200, 300, 500]
    assert label == [0, 0, 1, 2, 1, 1, 0, 0]


def test_loss_is_the_plain_one_and_the_weighted_entropy():
    """Relative differences: healthy right (0.5625 - 0.25) / 0.25, unhealthy right the reverse."""
    batch, stub = drawn()
    plain = float(DenoisingLoss(stub)(batch).detach())
    assert plain == pytest.approx(np.mean([0.25, 0.25, 0.5625, 1.0, 0.5625]), rel=1e-5)
    healthy = 30 * (0.5625 - 0.25) / 0.25
    unhealthy = 30 * (0.25 - 0.5625) / 0.5625
    entropy = np.mean([np.log1p(np.exp(-odds)) for odds in (healthy, unhealthy, unhealthy)])
    got = float(DenoisingLoss(stub, contrast=0.1)(batch))
    assert got == pytest.approx(plain + 0.1 * entropy, rel=1e-5)


def test_entropy_draws_the_right_error_down_and_the_other_up():
    given = torch.tensor([0.2, 0.3], requires_grad=True)
    other = torch.tensor([0.21, 0.28], requires_grad=True)
    label_entropy(given, other).backward()
    odds = 30 * (np.array([0.21, 0.28]) - np.array([0.2, 0.3])) / np.array([0.2, 0.3])
    slope = 30 / np.array([0.2, 0.3]) / (1 + np.exp(odds)) / 2
    np.testing.assert_allclose(given.grad, slope, rtol=1e-4)
    np.testing.assert_allclose(other.grad, -slope, rtol=1e-4)
    assert float(label_entropy(torch.ones(0), torch.ones(0))) == 0


def test_a_batch_without_labels_has_the_plain_loss():
    batch, stub = drawn()
    unknown = Batch(batch.x0, batch.t, torch.full((5,), NULL), batch.noise)
    assert float(DenoisingLoss(stub, contrast=0.1)(unknown)) == pytest.approx(1.0, rel=1e-5)
