"""The calibrated decision against scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from anofpdm.calibrate.choose import Labels, cross_validated
from anofpdm.calibrate.decision_fit import fit, leave_patients_out
from anofpdm.runtime.method.decision import SliceStatistics


def slices(n=120, patients=6, seed=0):
    rng = np.random.default_rng(seed)
    unhealthy = rng.random(n) < 0.4
    names = np.array([f"P{i % patients}" for i in range(n)])
    angle = np.exp(-3 + 0.8 * unhealthy + 0.5 * rng.standard_normal(n))
    aligned = 0.1 * unhealthy + 0.08 * rng.standard_normal(n)
    high = -2 + unhealthy + rng.standard_normal(n)
    return SliceStatistics(np.cos(angle), aligned, high), unhealthy, names


def columns(found):
    return np.stack([found.alignment, np.arccos(found.cosine), found.map_peak], axis=1)


def sklearn():
    return make_pipeline(StandardScaler(), LogisticRegression(C=1 / 3, tol=1e-10, max_iter=1000))


@pytest.mark.parametrize("seed", range(3))
def test_fit_is_the_ridge_regression_of_scikit_learn(seed):
    found, unhealthy, _ = slices(seed=seed)
    got, X = fit(found, unhealthy), columns(found)
    want = sklearn().fit(X, unhealthy)
    score = got.intercept + X @ [got.alignment, got.angle, got.map_peak]
    np.testing.assert_allclose(score, want.decision_function(X), atol=1e-3)
    np.testing.assert_allclose(got.log_odds(found), score)


def test_accuracy_is_on_patients_that_were_left_out():
    found, unhealthy, names = slices()
    called = cross_val_predict(sklearn(), columns(found), unhealthy, groups=names, cv=GroupKFold(6))
    got = cross_validated(found, Labels(unhealthy, names))
    assert got == pytest.approx((called == unhealthy).mean())


def test_no_patient_is_on_both_sides_and_every_one_is_tested_once():
    names = np.array([f"P{i % 23}" for i in range(230)])
    unhealthy = np.arange(230) % 3 == 0
    tested = np.zeros(230, int)
    folds = list(leave_patients_out(names, unhealthy))
    assert len(folds) == 10
    for kept, rest in folds:
        assert not set(names[kept]) & set(names[rest])
        tested += rest
    assert (tested == 1).all()


def test_with_one_patient_nothing_can_be_told():
    found, unhealthy, _ = slices()
    assert cross_validated(found, Labels(unhealthy, np.array(["P"] * 120))) is None


def test_a_statistic_that_never_changes_gets_no_weight():
    found, unhealthy, _ = slices()
    got = fit(replace(found, alignment=np.full(120, 0.1)), unhealthy)
    assert got.alignment == pytest.approx(0, abs=1e-6)
    assert got.angle > 0
    assert got.map_peak > 0
