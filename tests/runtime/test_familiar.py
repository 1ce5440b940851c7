import numpy as np
import pytest

from anofpdm.runtime.familiar import Familiar

KNOWN = Familiar((-1.0, -2.0, -3.0), (0.5, 1.0, 2.0), 1.5)


def test_distance_is_the_mean_deviation_in_spreads():
    """Modalities are averaged before the logarithm; a slice that left early has fewer steps."""
    MSE_0 = np.exp([[-1.0 + 0.5], [-2.0 - 3.0], [-3.0 + 4.0]])
    assert KNOWN.distance(MSE_0) == pytest.approx((1 + 3 + 2) / 3)
    assert KNOWN.distance(MSE_0[:2]) == pytest.approx((1 + 3) / 2)
    split = np.concatenate([0.5 * MSE_0, 1.5 * MSE_0], axis=1)
    assert KNOWN.distance(split) == pytest.approx(2)


def test_half_of_the_slices_must_be_further_off_than_the_limit():
    near, far = (np.exp(np.array(KNOWN.mean) + k * np.array(KNOWN.spread))[:, None] for k in (1, 2))
    assert not KNOWN.unlike([near, near, far])
    assert KNOWN.unlike([far, near, far])
    below = np.exp(np.array(KNOWN.mean) - 2 * np.array(KNOWN.spread))[:, None]
    assert KNOWN.unlike([below])


@pytest.mark.parametrize(
    "numbers",
    [((), (), 1.0), ((1.0,), (1.0, 1.0), 1.0), ((1.0,), (0.0,), 1.0),
     ((float("nan"),), (1.0,), 1.0), ((1.0,), (1.0,), float("inf"))],
)  # fmt: skip
def test_nonsense_is_refused(numbers):
    with pytest.raises(ValueError, match="familiar needs"):
        Familiar(*numbers)
