import numpy as np
import pytest
from transcription import alpha_bar

from anofpdm.runtime.method.schedule import Schedule


def test_abar_is_the_product_of_one_minus_beta():
    np.testing.assert_allclose(Schedule().abar, alpha_bar(), rtol=1e-12)


def test_first_values_of_the_specification():
    np.testing.assert_allclose(Schedule().abar[:3], [0.9999, 0.99978009, 0.99964028], atol=5e-9)


@pytest.mark.parametrize(
    ("L", "stride", "visited"), [(5, 1, [1, 2, 3, 4, 5]), (300, 100, [1, 101, 201]), (1, 7, [1])]
)
def test_visited_timesteps(L, stride, visited):
    assert Schedule().visited(L, stride).tolist() == visited


@pytest.mark.parametrize(("L", "stride"), [(0, 1), (1001, 1), (10, 0)])
def test_impossible_lengths_and_strides(L, stride):
    with pytest.raises(ValueError, match="L must lie in"):
        Schedule().visited(L, stride)


def test_log_snr_spacing_is_even_in_log_snr():
    steps = Schedule().visited(601, 100, "log-snr")
    assert (steps[0], steps[-1], len(steps)) == (1, 601, 7)
    abar = np.array(alpha_bar())[steps - 1]
    gaps = np.diff(np.log(abar / (1 - abar)))
    assert gaps.max() - gaps.min() < 0.02 * abs(gaps.mean()) + 0.7  # the first timesteps are coarse
    np.testing.assert_allclose(gaps[2:], gaps[2:].mean(), rtol=0.02)


def test_log_snr_spacing_drops_duplicates():
    steps = Schedule().visited(300, 1, "log-snr")
    assert len(steps) < 300
    assert (np.diff(steps) > 0).all()


def test_unknown_spacing():
    with pytest.raises(ValueError, match="spacing must be"):
        Schedule().visited(10, 1, "odd")
