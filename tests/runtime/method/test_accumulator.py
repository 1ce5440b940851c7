"""What is accumulated of a slice's steps, against the definitions on stored steps."""

import numpy as np
import pytest
import transcription

from anofpdm.runtime.method.accumulator import AnomalyAccumulator, mean_square
from anofpdm.runtime.method.anomaly_map import MapRule
from anofpdm.runtime.method.early_stop import StopRule
from anofpdm.runtime.method.step import Step

W, T = 3.0, (1, 51, 101, 151, 201)
ABAR = transcription.alpha_bar()


def steps(channels=3, clip=False, seed=0):
    """Steps whose guidance, and so M_t, is largest at 101 in one modality, at 51 in the others."""
    rng = np.random.default_rng(seed)
    x0 = rng.uniform(-1, 1, (channels, 6, 5)).astype(np.float32)
    strength = np.array([[0.1, 0.2, 0.9, 0.3, 0.1], [0.2, 0.9, 0.4, 0.2, 0.1]], np.float32)
    for i, t in enumerate(T):
        a = ABAR[t - 1]
        x_t, null, change = rng.standard_normal((3, *x0.shape)).astype(np.float32)
        each = np.array([strength[min(c, 1), i] for c in range(channels)], np.float32)
        # M_t is the mean of (B_t (1 + w) (eps_h - eps_0))^2, with B_t = sqrt((1 - abar) / abar).
        scale = each * np.float32(np.sqrt(a / (1 - a)))
        healthy = null + scale[:, None, None] * np.sign(change)
        yield Step(t, a, clip, x0, x_t, healthy, null)


def definition(all_steps, scored):
    """M, MSE_h, MSE_0 and the sub-anomaly maps in float64, of everything stored."""
    curves, S = ([], [], []), []
    for step in all_steps:
        x_t, x0, healthy, null = (
            array.astype(np.float64) for array in (step.x_t, step.x0, step.eps_healthy,
                                                   step.eps_null)
        )  # fmt: skip
        bound = (lambda v: np.clip(v, -1, 1)) if step.clip else (lambda v: v)
        HGP = bound(transcription.clean(x_t, transcription.guided(healthy, null, W), step.abar))
        UGP = bound(transcription.clean(x_t, null, step.abar))
        for curve, difference in zip(curves, (HGP - UGP, HGP - x0, UGP - x0), strict=True):
            curve.append([(difference[c] ** 2).mean() for c in scored])
        S.append([(HGP[c] - x0[c]) ** 2 for c in scored])
    return (*map(np.array, curves), np.array(S))


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("scored", [(0,), (1, 2), (2, 0)])
def test_curves_t_e_and_the_map_are_those_of_the_stored_steps(scored, clip):
    """Eqs. 12, 14, 16, 20 and 21."""
    accumulator, stored = AnomalyAccumulator(W, scored), list(steps(clip=clip))
    for step in stored:
        assert not accumulator.add(step, step.UGP())
    curves = accumulator.curves()
    M, MSE_h, MSE_0, S = definition(stored, scored)
    np.testing.assert_allclose(curves.M, M, rtol=1e-5)
    np.testing.assert_allclose(curves.MSE_h, MSE_h, rtol=1e-5)
    np.testing.assert_allclose(curves.MSE_0, MSE_0, rtol=1e-5)
    best = M.argmax(axis=0)
    assert curves.t_e.tolist() == [T[i] for i in best]
    H = np.array([S[: i + 1, k].mean(axis=0) for k, i in enumerate(best)])
    assert curves.H.dtype == np.float32
    np.testing.assert_allclose(curves.H, H, rtol=1e-4, atol=1e-5 * H.max())


def test_modalities_peak_at_timesteps_of_their_own():
    accumulator = AnomalyAccumulator(W, (0, 1))
    for step in steps():
        accumulator.add(step, step.UGP())
    assert accumulator.curves().t_e.tolist() == [101, 51]


def test_of_equal_peaks_the_first_counts():
    """As argmax has it: the map must not be that of a later timestep."""
    first, *_ = steps()
    again = Step(51, first.abar, first.clip, first.x0, first.x_t, first.eps_healthy, first.eps_null)
    accumulator = AnomalyAccumulator(W, (0,), MapRule("last"))
    for step in (first, again):
        accumulator.add(step, step.UGP())
    assert accumulator.curves().t_e.tolist() == [1]


def test_it_ends_where_the_rule_says():
    """Modality 0 has its peak at the third step, and M_t falls by more than a half after it."""
    stop = AnomalyAccumulator(W, (0,), stop=StopRule(0.5, 2))
    assert [stop.add(step, step.UGP()) for step in steps()] == [False, False, False, False, True]


def test_mean_square():
    difference = np.array([[[3.0, -4.0]], [[0.0, 1e-4]]], np.float32)
    got = mean_square(difference)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, [12.5, 5e-9], rtol=1e-6)
