import numpy as np
import pytest

from anofpdm.runtime.volume.plausibility import Plausibility

KNOWN = Plausibility((-1.0, -2.0, -3.0), (0.5, 1.0, 2.0), 1.5)


def test_distance_is_the_mean_deviation_in_spreads():
    """Modalities are averaged before the logarithm; a slice that left early has fewer steps."""
    MSE_0 = np.exp([[-1.0 + 0.5], [-2.0 - 3.0], [-3.0 + 4.0]])
    assert KNOWN.distance(MSE_0) == pytest.approx((1 + 3 + 2) / 3)
    assert KNOWN.distance(MSE_0[:2]) == pytest.approx((1 + 3) / 2)
    split = np.concatenate([0.5 * MSE_0, 1.5 * MSE_0], axis=1)
    assert KNOWN.distance(split) == pytest.approx(2)


def test_a_volume_is_as_far_off_as_the_median_of_its_slices():
    near, far = (np.exp(np.array(KNOWN.mean) + k * np.array(KNOWN.spread))[:, None] for k in (1, 2))
    assert KNOWN.excess([near, near, far]) == pytest.approx(1 / 1.5)
    assert KNOWN.excess([far, near, far]) == pytest.approx(2 / 1.5)
    below = np.exp(np.array(KNOWN.mean) - 2 * np.array(KNOWN.spread))[:, None]
    assert KNOWN.excess([below]) == pytest.approx(2 / 1.5)


@pytest.mark.parametrize(
    "numbers",
    [((), (), 1.0), ((1.0,), (1.0, 1.0), 1.0), ((1.0,), (0.0,), 1.0),
     ((float("nan"),), (1.0,), 1.0), ((1.0,), (1.0,), float("inf")), ((1.0,), (1.0,), 0.0)],
)  # fmt: skip
def test_nonsense_is_refused(numbers):
    with pytest.raises(ValueError, match="plausibility needs"):
        Plausibility(*numbers)
