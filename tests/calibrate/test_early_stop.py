"""The stopping rule against a search by brute force over recorded curves."""

import dataclasses

import numpy as np
import pytest
from support import fading_network, labelled
from transcription import is_over

from anofpdm.calibrate.choose import candidate, cross_validated
from anofpdm.calibrate.early_stop import _DROPS, _PATIENCES, choose_stop, fit_rule
from anofpdm.calibrate.sweep import Curves
from anofpdm.runtime.backends.cpu.numpy_loop import NumpySlots
from anofpdm.runtime.backends.scheduler import run
from anofpdm.runtime.method.accumulator import AnomalyAccumulator
from anofpdm.runtime.method.decision import SliceStatistics, alignment, cosine
from anofpdm.runtime.method.early_stop import StopRule
from anofpdm.runtime.method.process import Process, Slice
from anofpdm.runtime.method.schedule import Schedule


def peaked(n_slices=60, n=40, channels=2, seed=0, wiggle=0.02):
    """Curves with a peak at different places, and errors that separate the classes."""
    rng = np.random.default_rng(seed)
    unhealthy = np.arange(n_slices) % 3 == 0
    t = np.arange(n)
    middle = rng.uniform(6, 18, (n_slices, 1, channels))
    M = np.exp(-(((t[:, None] - middle) / 8) ** 2)) + wiggle * rng.random((n_slices, n, channels))
    MSE_0 = 1 + 0.1 * rng.random((n_slices, n, channels))
    slope = np.where(unhealthy, 0.8, 0.2) + 0.4 * rng.standard_normal(n_slices)
    MSE_h = MSE_0 * (1 + slope[:, None, None] * (t / n)[:, None]) ** 2
    peak = slope[:, None] + rng.random((n_slices, 1))
    return Curves((2.0,), 1 + 10 * t, M[:, None], MSE_h[:, None], MSE_0, peak), unhealthy


def brute_force(curves, unhealthy, full, drop, patience):
    """Agreement of t_e, best accuracy of the cosine, and mean steps, slice by slice."""
    agree, cosines, steps = [], [], []
    for M, MSE_h, MSE_0 in zip(curves.M[:, 0], curves.MSE_h[:, 0], curves.MSE_0, strict=True):
        n = len(M)
        visited = next((i for i in range(1, n) if is_over(M[:i], drop, patience)), n)
        agree.append((M[:visited].argmax(axis=0) == M.argmax(axis=0)).all())
        cosines.append(float(cosine(MSE_h[:visited], MSE_0[:visited])))
        steps.append(visited)
    values = np.unique(cosines)
    between = [values[0] - 1, *((values[1:] + values[:-1]) / 2), values[-1] + 1]
    accuracy = max(np.mean((np.array(cosines) <= c) == unhealthy) for c in between)
    return np.mean(agree), accuracy, np.mean(steps)


def test_every_rule_is_that_of_brute_force():
    """Agreement in every modality, accuracy with the threshold that is given, steps."""
    curves, unhealthy = peaked(wiggle=0.3)
    labels = labelled(unhealthy)
    full = candidate(curves, 391, 2.0, labels)
    agreements, accuracies = set(), set()
    for drop in _DROPS[::2]:
        for patience in _PATIENCES[:6:2]:
            rule = StopRule(drop, patience)
            want = brute_force(curves, unhealthy, full, drop, patience)
            got = fit_rule(curves, labels, full, "cosine", rule)
            assert (got.agreement, got.accuracy, got.mean_steps) == pytest.approx(want)
            steps = rule.steps(curves.M[:, 0])
            cosines = [
                float(cosine(h[:n], zero[:n]))
                for h, zero, n in zip(curves.MSE_h[:, 0], curves.MSE_0, steps, strict=True)
            ]
            assert ((np.array(cosines) <= got.Cos_w) == unhealthy).mean() == got.accuracy
            aligned = np.array([
                alignment(M[:n], h[:n], zero[:n])
                for M, h, zero, n in zip(
                    curves.M[:, 0], curves.MSE_h[:, 0], curves.MSE_0, steps, strict=True
                )
            ])  # fmt: skip
            calibrated = fit_rule(curves, labels, full, "calibrated", rule)
            statistics = SliceStatistics(np.array(cosines), aligned, curves.map_peak[:, 0])
            assert calibrated.accuracy == pytest.approx(cross_validated(statistics, labels))
            called = calibrated.logistic.log_odds(statistics) >= 0
            assert (called == unhealthy).mean() > 0.75
            M_max = np.max(
                [M[:n].max(axis=0) for M, n in zip(curves.M[:, 0], steps, strict=True)], axis=0
            )
            assert got.M_max == pytest.approx(tuple(M_max))
            agreements.add(got.agreement)
            accuracies.add(got.accuracy)
    assert len(agreements) > 3
    assert len(accuracies) > 2


def test_the_cheapest_rule_that_keeps_t_e_and_accuracy():
    curves, unhealthy = peaked()
    labels = labelled(unhealthy)
    full = candidate(curves, 391, 2.0, labels)
    got = choose_stop(curves, labels, full, "cosine")
    allowed = []
    for drop in _DROPS:
        for patience in _PATIENCES[:8]:
            found = brute_force(curves, unhealthy, full, drop, patience)
            if found[0] >= 0.99 and found[1] >= full.cosine_accuracy:
                allowed.append(found[2])
    assert got.safe
    assert got.mean_steps == pytest.approx(min(allowed))
    assert got.mean_steps < 0.9 * got.full_steps == 36


def two_humps():
    """Two like humps: whoever stops after the first loses some of the t_e."""
    curves, unhealthy = peaked(wiggle=0.0)
    labels = labelled(unhealthy)
    M = np.concatenate([curves.M[:, :, :30], 0.5 * curves.M[:, :, :10], curves.M[:, :, :30]], 2)
    M[::2, :, 40:] *= 1.5
    more = {"timesteps": 1 + 10 * np.arange(70), "M": M}
    more["MSE_h"] = np.repeat(curves.MSE_h, 2, axis=2)[:, :, :70]
    more["MSE_0"] = np.repeat(curves.MSE_0, 2, axis=1)[:, :70]
    curves = dataclasses.replace(curves, **more)
    full = candidate(curves, 691, 2.0, labels)
    return curves, unhealthy, labels, full


def test_a_rule_that_loses_the_peak_is_recorded_but_off():
    curves, unhealthy, labels, full = two_humps()
    got = choose_stop(curves, labels, full, "calibrated")
    assert not got.safe
    tried = [
        brute_force(curves, unhealthy, full, drop, patience)
        for drop in _DROPS
        for patience in _PATIENCES
        if patience < 70
    ]
    assert got.agreement == pytest.approx(max(found[0] for found in tried if found[2] <= 63))


def test_rising_curves_leave_nothing_to_save():
    curves, unhealthy = peaked()
    labels = labelled(unhealthy)
    rising = np.broadcast_to(np.arange(1.0, 41.0)[None, None, :, None], curves.M.shape)
    curves = dataclasses.replace(curves, M=rising)
    full = candidate(curves, 391, 2.0, labels)
    assert choose_stop(curves, labels, full, "cosine") is None


def test_the_runtime_stops_where_the_calibration_says():
    rng = np.random.default_rng(0)
    stream = [Slice(i, x) for i, x in enumerate(rng.uniform(-1, 1, (6, 1, 16, 16)).astype("f4"))]
    process = Process(Schedule(), 901, 30)

    def digests(stop):
        row = NumpySlots(process, fading_network, lambda: AnomalyAccumulator(2.0, (0,), stop=stop))
        results = run(row, stream)
        return {item.key: accumulator for item, accumulator in results}

    full = digests(None)
    M = np.array([full[i].M for i in range(6)])
    rule = choose_stop_rule(M)
    stopped = digests(rule)
    for i in range(6):
        assert len(stopped[i].M) == rule.steps(M[i]) < 31
        np.testing.assert_array_equal(stopped[i].M, M[i][: len(stopped[i].M)])


def choose_stop_rule(M):
    n = M.shape[1]
    labels = labelled(np.arange(len(M)) % 2 == 0)
    ones = np.ones((len(M), 1, n, 1))
    curves = Curves((2.0,), 1 + 30 * np.arange(n), M[:, None], ones, ones[:, 0], ones[:, :, 0, 0])
    full = candidate(curves, 901, 2.0, labels)
    return choose_stop(curves, labels, full, "cosine").rule
