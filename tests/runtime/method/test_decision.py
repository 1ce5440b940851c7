"""What decisions go by, against the pixels and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anofpdm.runtime.method.decision import (
    LogisticDecision,
    SliceStatistics,
    alignment,
    cosine,
    map_peak,
    probability,
)


def test_cosine_of_parallel_sequences_is_one_and_of_orthogonal_ones_zero():
    one = np.array([[1.0], [2.0], [3.0]])
    assert cosine(one, 5 * one) == pytest.approx(1.0)
    assert cosine(np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]])) == 0.0


def test_cosine_averages_modalities_first():
    h = np.array([[1.0, 3.0], [0.0, 4.0]])
    zero = np.array([[2.0, 0.0], [1.0, 1.0]])
    a, b = np.array([2.0, 2.0]), np.array([1.0, 1.0])
    assert cosine(h, zero) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_cosine_of_equal_predictions_is_healthy():
    assert cosine(np.zeros((4, 1)), np.ones((4, 1))) == 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 3))
def test_alignment_is_the_cosine_between_guidance_and_error_over_all_pixels(seed, n, channels):
    rng = np.random.default_rng(seed)
    x0, UGP, HGP = rng.standard_normal((3, n, channels, 5, 7))
    M, MSE_h, MSE_0 = (np.square(d).mean(axis=(2, 3)) for d in (HGP - UGP, HGP - x0, UGP - x0))
    a, b = (HGP - UGP).ravel(), (UGP - x0).ravel()
    want = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    assert alignment(M, MSE_h, MSE_0) == pytest.approx(want)
    stacked = alignment(np.stack([M, M]), np.stack([MSE_h, MSE_h]), np.stack([MSE_0, MSE_0]))
    assert stacked == pytest.approx([want, want])


def test_alignment_says_which_way_guidance_leads():
    """Away from the slice: 1; straight to it: -1; nowhere, or from no error: 0."""
    one = np.ones((3, 1))
    assert alignment(one, 4 * one, one) == pytest.approx(1)
    assert alignment(one, 0 * one, one) == pytest.approx(-1)
    assert alignment(0 * one, one, one) == alignment(one, one, 0 * one) == 0


def test_the_calibrated_decision_is_a_logistic_regression():
    decision = LogisticDecision(0.5, 2.0, -3.0, 0.25)
    for aligned, cos, high in ((0.2, 0.1, -2), (-0.9, 1.0, -9), (0.0, -1.0, 1), (0.0, 1 + 1e-9, 0)):
        score = 0.5 + 2 * aligned - 3 * np.arccos(min(cos, 1.0)) + 0.25 * high
        log_odds = float(decision.log_odds(SliceStatistics(*map(np.array, (cos, aligned, high)))))
        assert log_odds == pytest.approx(score)
        assert probability(log_odds) == pytest.approx(1 / (1 + np.exp(-score)))
    for intercept, certain in ((-1e6, 0.0), (1e6, 1.0)):
        some = SliceStatistics(np.array([0.9, 0.1]), np.array([0.0, 0.5]), np.array([-3.0, 1.0]))
        log_odds = LogisticDecision(intercept, 1.0, 1.0, 1.0).log_odds(some)
        assert [probability(float(one)) for one in log_odds] == [certain, certain]
    for wrong in ((0.0, float("nan"), 0.0, 0.0), (0.0, 0.0, 0.0, float("inf"))):
        with pytest.raises(ValueError, match="finite"):
            LogisticDecision(*wrong)


def test_the_map_peak_is_the_logarithm_of_the_maps_largest_value():
    H = np.full((4, 5), 0.1, np.float32)
    H[2, 3] = np.e
    assert map_peak(H) == pytest.approx(1.0)
    assert map_peak(np.zeros((4, 5), np.float32)) == pytest.approx(np.log(1e-6))
