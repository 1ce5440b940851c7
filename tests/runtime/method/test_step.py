"""The equations of one step, each against the float64 transcription.

In float32 a result is off by a few roundings, 2^-24 each, of the largest term that it is made of:
that is the tolerance. Breaking one line of step.py fails the test of its equation.
"""

import numpy as np
import pytest
import transcription
from hypothesis import given, settings
from hypothesis import strategies as st

from anofpdm.runtime.method.step import Step, ddim_step, noised

EPS = 2.0**-24
ABAR = transcription.alpha_bar()
TIMESTEPS = st.integers(1, 1000)
SEEDS = st.integers(0, 2**31)


def draw(seed, count):
    """So many arrays (2, 7, 9) in float32, and the same in float64."""
    rng = np.random.default_rng(seed)
    arrays = rng.standard_normal((count, 2, 7, 9)).astype(np.float32)
    return arrays, arrays.astype(np.float64)


def close(got, want, terms):
    """``terms``: the largest magnitude of what ``got`` was summed from, divided as it was."""
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * EPS * float(terms))


@settings(max_examples=50, deadline=None)
@given(SEEDS, TIMESTEPS)
def test_eq_2_noises_the_clean_slice(seed, t):
    (x0, noise), (x0_64, noise_64) = draw(seed, 2)
    want = transcription.noised(x0_64, noise_64, ABAR[t - 1])
    close(noised(x0, noise, ABAR[t - 1]), want, np.abs(x0).max() + np.abs(noise).max())


@settings(max_examples=50, deadline=None)
@given(SEEDS, TIMESTEPS, TIMESTEPS)
def test_eq_4_encodes_to_the_next_timestep(seed, t, other):
    """x_t is made of UGP and noise, so that the direction is that noise."""
    t, after = min(t, other), max(t, other)
    a, b = ABAR[t - 1], ABAR[after - 1]
    (UGP, noise), (UGP_64, noise_64) = draw(seed, 2)
    x_t = transcription.noised(UGP_64, noise_64, a).astype(np.float32)
    want = transcription.encoded(x_t.astype(np.float64), UGP_64, a, b)
    # The difference x_t - sqrt(abar) UGP is divided by sqrt(1 - abar), 0.01 at the first timestep.
    terms = np.abs(UGP).max() + np.sqrt((1 - b) / (1 - a)) * 2 * np.abs(x_t).max()
    terms += np.abs(noise).max()
    close(ddim_step(x_t, UGP, a, b), want, terms)
    closed_form = transcription.noised(UGP_64, noise_64, b)
    np.testing.assert_allclose(want, closed_form, rtol=0, atol=8 * EPS * terms)


def test_eq_4_by_hand():
    """Dyadic coefficients, whose roots are exact: 0.8 and 0.6, 0.6 and 0.8."""
    x_t, UGP = np.full((1, 1, 1), 1.4, np.float32), np.full((1, 1, 1), 1.0, np.float32)
    # direction (1.4 - 0.8 * 1) / 0.6 = 1, next 0.6 * 1 + 0.8 * 1
    assert ddim_step(x_t, UGP, 0.64, 0.36).item() == pytest.approx(1.4, abs=4e-7)
    x_t = np.full((1, 1, 1), 2.0, np.float32)
    # direction (2 - 0.8) / 0.6 = 2, next 0.6 + 0.8 * 2
    assert ddim_step(x_t, UGP, 0.64, 0.36).item() == pytest.approx(2.2, abs=4e-7)


def test_eq_2_by_hand():
    x0, noise = np.full((1, 1, 1), 2.0, np.float32), np.full((1, 1, 1), -1.0, np.float32)
    assert noised(x0, noise, 0.64).item() == pytest.approx(0.8 * 2 - 0.6, abs=4e-7)


@settings(max_examples=50, deadline=None)
@given(SEEDS, TIMESTEPS, st.floats(0, 60), st.booleans())
def test_eqs_6_7_and_10_predict_the_clean_slice(seed, t, w, clip):
    (x0, x_t, healthy, null), (_, x_64, healthy_64, null_64) = draw(seed, 4)
    a = ABAR[t - 1]
    step = Step(t, a, clip, x0, x_t, healthy, null)
    HGP = transcription.clean(x_64, transcription.guided(healthy_64, null_64, w), a)
    UGP = transcription.clean(x_64, null_64, a)
    if clip:
        HGP, UGP = np.clip(HGP, -1, 1), np.clip(UGP, -1, 1)
    eps_w = (1 + w) * np.abs(healthy).max() + w * np.abs(null).max()
    close(step.UGP(), UGP, (np.abs(x_t).max() + np.abs(null).max()) / np.sqrt(a))
    close(step.HGP(w), HGP, (np.abs(x_t).max() + eps_w) / np.sqrt(a))


def test_ddim_step_keeps_the_noise_and_moves_the_rest():
    rng = np.random.default_rng(0)
    x0, noise = rng.normal(size=(2, 1, 8, 8)).astype(np.float32)
    a, b = 0.9, 0.5
    x_t = np.sqrt(np.float32(a)) * x0 + np.sqrt(np.float32(1 - a)) * noise
    moved = ddim_step(x_t, x0, a, b)
    np.testing.assert_allclose(moved, np.sqrt(b) * x0 + np.sqrt(1 - b) * noise, atol=1e-5)
