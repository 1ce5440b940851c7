"""When slices leave as healthy, against a search by brute force over recorded curves."""

import numpy as np
import pytest
from support import labelled

from anofpdm.calibrate.choose import candidate
from anofpdm.calibrate.healthy_leave import _MARGINS, choose_leave
from anofpdm.calibrate.sweep import Curves
from anofpdm.runtime.verdict import cosine


def told_apart(noise, n_slices=200, n=20, channels=2, seed=0):
    """M_t grows twice as fast on unhealthy slices, more or less; the cosine knows the class."""
    rng = np.random.default_rng(seed)
    unhealthy = np.arange(n_slices) % 3 == 0
    speed = np.where(unhealthy, 2.0, 1.0) * np.exp(noise * rng.standard_normal(n_slices))
    t = np.arange(1, n + 1)
    wiggle = 1 + 0.02 * rng.random((n_slices, n, channels))
    M = speed[:, None, None] * t[:, None] * wiggle
    MSE_0 = np.ones((n_slices, n, channels))
    slope = np.where(unhealthy, 1.0, 0.1) + 0.02 * rng.standard_normal(n_slices)
    MSE_h = MSE_0 * (1 + slope[:, None, None] * (t / n)[:, None])
    return Curves((2.0,), t, M[:, None], MSE_h[:, None], MSE_0, np.zeros((len(M), 1))), unhealthy


def by_brute_force(curves, labels, margin):
    """Verdicts kept, unhealthy slices lost, and mean steps on patients left out, with thresholds
    made by the others."""
    kept, lost, steps = [], 0, []
    for patient in np.unique(labels.patients):
        own = labels.patients == patient
        others = curves.take(~own)
        rest = labelled(labels.unhealthy[~own])
        Cos_w = candidate(others, 20, 2.0, rest).Cos_w
        sick = cosine(others.MSE_h[:, 0], others.MSE_0) <= Cos_w
        for i in np.flatnonzero(own):
            verdict = cosine(curves.MSE_h[i, 0], curves.MSE_0[i]) <= Cos_w
            left = None
            for k in range(curves.M.shape[2] - 1):
                least = others.M[sick, 0, : k + 1].max(axis=1).min(axis=0)
                if (curves.M[i, 0, : k + 1].max(axis=0) < margin * least).all():
                    left = k
                    break
            kept.append(left is None or not verdict)
            lost += not kept[-1] and labels.unhealthy[i]
            steps.append(curves.M.shape[2] if left is None else left + 1)
    return np.mean(kept), lost, np.mean(steps)


@pytest.mark.parametrize("noise", [0.05, 0.18])
def test_the_widest_bounds_that_keep_the_verdicts(noise):
    curves, unhealthy = told_apart(noise)
    labels = labelled(unhealthy)
    full = candidate(curves, 20, 2.0, labels)
    found = choose_leave(curves, labels, full, "cosine")
    agreement, lost, steps = by_brute_force(curves, labels, found.margin)
    assert (found.agreement, found.mean_steps) == pytest.approx((agreement, steps))
    assert found.agreement >= 0.99
    assert not lost
    assert found.mean_steps <= 0.9 * found.full_steps == 0.9 * 20
    tried = {margin: by_brute_force(curves, labels, margin)[:2] for margin in _MARGINS}
    safe = [margin for margin, (kept, lost) in tried.items() if kept >= 0.99 and not lost]
    assert found.margin == max(safe)
    called = cosine(curves.MSE_h[:, 0], curves.MSE_0) <= full.Cos_w
    least = np.maximum.accumulate(curves.M[called, 0], axis=1).min(axis=0)
    np.testing.assert_allclose(found.bounds, found.margin * least)


def test_unhealthy_slices_count_more_than_the_rest():
    """Where 99 % of the verdicts would be kept, but an unhealthy slice be lost."""
    widest = []
    for seed in range(6):
        curves, unhealthy = told_apart(0.18, seed=seed)
        labels = labelled(unhealthy)
        found = choose_leave(curves, labels, candidate(curves, 20, 2.0, labels), "cosine")
        widest.append(found.margin)
        for margin in (m for m in _MARGINS if m > found.margin):
            kept, lost, _ = by_brute_force(curves, labels, margin)
            assert lost or kept < 0.99
    assert min(widest) < 1


def test_verdicts_that_change_count_whatever_the_label():
    """Healthy slices of one patient that are called unhealthy, with a low M_t: 2 % of all."""
    curves, unhealthy = told_apart(0.05, n_slices=300)
    labels = labelled(unhealthy)
    odd = np.flatnonzero(~unhealthy & (labels.patients == "P0"))[:6]
    curves.MSE_h[odd] = curves.MSE_h[np.flatnonzero(unhealthy)[:6]]
    found = choose_leave(curves, labels, candidate(curves, 20, 2.0, labels), "cosine")
    tried = {margin: by_brute_force(curves, labels, margin) for margin in _MARGINS}
    assert any(kept < 0.99 and not lost for kept, lost, _ in tried.values())
    widest = max(margin for margin, (kept, lost, _) in tried.items() if kept >= 0.99 and not lost)
    worth = tried[widest][2] <= 0.9 * 20
    assert (found.margin if found else None) == (widest if worth else None)


def test_where_it_saves_too_little_there_is_no_rule():
    """M_t is the same on both classes."""
    curves, unhealthy = told_apart(0.05)
    curves.M[:] = curves.M[:1]
    labels = labelled(unhealthy)
    full = candidate(curves, 20, 2.0, labels)
    assert choose_leave(curves, labels, full, "cosine") is None


def test_one_patient_alone_says_nothing_of_others():
    curves, unhealthy = told_apart(0.05)
    labels = labelled(unhealthy, patients=1)
    full = candidate(curves, 20, 2.0, labels)
    assert choose_leave(curves, labels, full, "cosine") is None


def test_the_verdict_in_use_decides_whose_bounds_count():
    """The calibrated one, where the cosine says the contrary of the labels."""
    curves, unhealthy = told_apart(0.05)
    labels = labelled(unhealthy)
    full = candidate(curves, 20, 2.0, labels)
    mixed = curves.MSE_h[::-1].copy()
    other = Curves(curves.w, curves.timesteps, curves.M, mixed, curves.MSE_0, curves.map_peak)
    confused = candidate(other, 20, 2.0, labels)
    by_calibrated = choose_leave(other, labels, confused, "calibrated")
    assert by_calibrated.bounds == choose_leave(curves, labels, full, "calibrated").bounds
    assert choose_leave(other, labels, confused, "cosine") != by_calibrated
