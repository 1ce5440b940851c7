import numpy as np
import pytest
from transcription import quantile_threshold

from anofpdm.runtime.method.threshold import threshold


@pytest.mark.parametrize("share", [0.0, 0.123, 0.5, 0.995, 1.0, 3.0])
def test_threshold_is_algorithm_1(share):
    rng = np.random.default_rng(1)
    H = rng.gamma(2.0, size=(2, 40, 40)).astype(np.float32)
    M_max = np.array([0.02, 0.05])
    M = share * M_max[None] * np.array([[0.3, 0.3], [1.0, 1.0]])
    want = quantile_threshold(H, M, M_max)
    assert threshold(H, M.max(axis=0), M_max, 0.90, 0.98).Q == pytest.approx(want, rel=1e-6)


def test_larger_divergence_cuts_lower():
    H = np.random.default_rng(0).random((1, 30, 30)).astype(np.float32)
    cuts = [threshold(H, np.array([m]), np.array([1.0]), 0.9, 0.98) for m in (0.0, 0.5, 1.0)]
    assert [cut.index.tolist() for cut in cuts] == [[0], [50], [100]]
    np.testing.assert_allclose(
        [cut.Q for cut in cuts], np.quantile(H, [0.98, 0.94, 0.90]), rtol=1e-6
    )


def test_every_hundredth_of_M_max_has_its_place_in_the_grid():
    """Also where a hundred times a hundredth is a little less than whole, as 29 times is."""
    H = np.random.default_rng(0).random((1, 8, 8)).astype(np.float32)
    places = [threshold(H, np.array([i / 100]), np.ones(1), 0.9, 0.98).index[0] for i in range(101)]
    assert places == list(range(101))
