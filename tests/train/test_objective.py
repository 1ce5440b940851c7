from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transcription import alpha_bar

from anofpdm.runtime.method.schedule import Schedule
from anofpdm.train.batches import Batch
from anofpdm.train.objective import DenoisingLoss, timestep_weights

WHEN = (0, 40, 300, 999)


class Knows(nn.Module):
    """Predicts what it was told, plus 2."""

    def __init__(self, prediction, answer):
        super().__init__()
        self.config, self.answer = SimpleNamespace(prediction=prediction), answer

    def label_rows(self):
        return torch.zeros(3, 8)

    def body(self, x_t, t, label_rows, label):
        self.x_t = x_t
        return (self.answer + 2).float()


@pytest.mark.parametrize("weighting", ["uniform", "min-snr"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_the_loss_compares_with_what_is_predicted(prediction, weighting):
    torch.manual_seed(0)
    x0, noise = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8)
    abar = torch.tensor([alpha_bar()[i] for i in WHEN], dtype=torch.float64)[:, None, None, None]
    answer = {"eps": noise, "v": abar.sqrt() * noise - (1 - abar).sqrt() * x0, "x0": x0}
    network = Knows(prediction, answer[prediction])
    batch = Batch(x0, torch.tensor(WHEN), torch.zeros(4, dtype=torch.int64), noise)
    loss = DenoisingLoss(network, weighting)(batch)
    want = timestep_weights(weighting, prediction, Schedule())[list(WHEN)].mean() * 4
    assert float(loss) == pytest.approx(want, rel=1e-4)
    torch.testing.assert_close(network.x_t.double(), abar.sqrt() * x0 + (1 - abar).sqrt() * noise,
                               atol=1e-5, rtol=1e-5)  # fmt: skip


def test_min_snr_weights_the_same_error_alike_whatever_is_predicted():
    abar = np.array([alpha_bar()[i] for i in range(1000)])
    snr = abar / (1 - abar)
    weights = {kind: timestep_weights("min-snr", kind, Schedule()) for kind in ("eps", "v", "x0")}
    # An error e of x0 is one of sqrt(abar / (1 - abar)) e in eps, and of e / sqrt(1 - abar) in v.
    scales = {"x0": np.ones(1000), "eps": abar / (1 - abar), "v": 1 / (1 - abar)}
    for kind, found in weights.items():
        assert found.mean() == pytest.approx(1)
        ratio = found * scales[kind] / np.minimum(snr, 5)
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    assert (timestep_weights("uniform", "v", Schedule()) == 1).all()
