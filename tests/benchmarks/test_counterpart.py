"""The reference implementation's loop: its results and its cost, by its description."""

import numpy as np
import pytest
import torch
from counterpart import Counted, evaluations_a_slice, forward_process, select
from support import toy_network
from transcription import alpha_bar, anomaly

from anofpdm.train.unet import HEALTHY, NULL

RNG = np.random.default_rng(0)
X0 = RNG.uniform(-1, 1, (3, 2, 16, 16)).astype(np.float32)
NOISE = RNG.standard_normal(X0.shape).astype(np.float32)
L, W = 30, 2.0


class Recording:
    """The toy network in torch; records the timestep and the label of each call."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t, label):
        assert len(set(t.tolist())) == 1  # the whole batch stands at one timestep
        self.calls.append((int(t[0]), int(label[0])))
        eps = toy_network(x_t.numpy(), t.numpy() + 1)
        return torch.from_numpy(eps[0] if label[0] == HEALTHY else eps[1])


@pytest.fixture(scope="module")
def ran():
    recording = Recording()
    network = Counted(recording)
    stored = forward_process(network, torch.from_numpy(X0), torch.from_numpy(NOISE), L, W)
    return network, recording, stored


def test_four_evaluations_a_step_but_for_the_first(ran):
    network, recording, _ = ran
    assert evaluations_a_slice(600) == 2399
    assert network.evaluations == len(recording.calls) == evaluations_a_slice(L) == 119
    of_a_step = [(7, HEALTHY), (7, HEALTHY), (7, NULL), (7, HEALTHY)]
    assert recording.calls[3 + 6 * 4 : 3 + 7 * 4] == of_a_step
    assert recording.calls[:3] == [(0, HEALTHY), (0, NULL), (0, HEALTHY)]


def test_every_step_of_both_predictions_is_stored(ran):
    _, _, stored = ran
    assert stored.guided.shape == stored.unguided.shape == (L, *X0.shape)
    assert stored.guided.abs().max() <= 1


def test_it_moves_with_the_network_one_step_ahead(ran):
    """x_1, x_2 and the predictions there, by hand in float64."""
    _, _, stored = ran
    a, b = alpha_bar()[:2]
    x1 = np.sqrt(a) * X0.astype(np.float64) + np.sqrt(1 - a) * NOISE
    eps = toy_network(x1, np.array([2, 2, 2]))[0]  # at t = 2, from x_1
    clean = np.clip((x1 - np.sqrt(1 - a) * eps) / np.sqrt(a), -1, 1)
    x2 = np.sqrt(b) * clean + np.sqrt(1 - b) * (x1 - np.sqrt(a) * clean) / np.sqrt(1 - a)
    eps_healthy, eps_null = toy_network(x2, np.array([2, 2, 2]))
    for eps, got in (
        ((1 + W) * eps_healthy - W * eps_null, stored.guided[1]),
        (eps_healthy, stored.unguided[1]),
    ):
        want = np.clip((x2 - np.sqrt(1 - b) * eps) / np.sqrt(b), -1, 1)
        np.testing.assert_allclose(got.numpy(), want, atol=2e-5)


def test_its_divergence_is_the_papers_but_for_a_factor():
    """(w / (1 + w))^2, at the first step, where both stand at the same x_t; without clipping."""
    x0 = 0.2 * X0
    stored = forward_process(
        Counted(Recording()), torch.from_numpy(x0), torch.from_numpy(NOISE), 1, W
    )
    got = select(stored, torch.from_numpy(x0), np.array([1.0, 1.0]), 0.9, 0.98).M[:, 0]
    want = [
        anomaly(x, lambda t, n=n: n, toy_network, W, [1])["M"][0]
        for x, n in zip(x0, NOISE, strict=True)
    ]
    np.testing.assert_allclose(got, np.array(want) * (W / (1 + W)) ** 2, rtol=1e-3)


def test_the_map_leaves_out_the_step_it_ends_at(ran):
    _, _, stored = ran
    stored = type(stored)(stored.guided.clone(), stored.unguided.clone())
    stored.unguided[12, 0] = stored.guided[12, 0] + 3  # t_e of the first slice
    stored.unguided[0, 1] = stored.guided[0, 1] + 3  # of the second one: the first step
    found = select(stored, torch.from_numpy(X0), np.array([9.0, 9.0]), 0.9, 0.98)
    assert found.t_e[0].tolist() == [13, 13]
    want = np.square(stored.guided[:12, 0].numpy() - X0[0]).mean(axis=0)
    np.testing.assert_allclose(found.H[0], want, rtol=1e-5)
    assert found.t_e[1].tolist() == [1, 1]
    assert not found.H[1].any()
    assert found.M[0, 12] == pytest.approx(9.0, rel=1e-5)
    np.testing.assert_allclose(
        found.MSE_0[2, 5], np.square(stored.unguided[5, 2].numpy() - X0[2]).mean(axis=(1, 2)),
        rtol=1e-5,
    )  # fmt: skip
    assert found.masks.shape == (3, 16, 16)
