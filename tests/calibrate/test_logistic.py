"""The calibrated verdict against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from anofpdm.calibrate.choose import Labels, cross_validated
from anofpdm.calibrate.logistic import fit, left_out


def slices(n=120, patients=6, seed=0):
    rng = np.random.default_rng(seed)
    unhealthy = rng.random(n) < 0.4
    names = np.array([f"P{i % patients}" for i in range(n)])
    angle = np.exp(-3 + 0.8 * unhealthy + 0.5 * rng.standard_normal(n))
    aligned = 0.1 * unhealthy + 0.08 * rng.standard_normal(n)
    return aligned, np.cos(angle), unhealthy, names


def sklearn():
    return make_pipeline(StandardScaler(), LogisticRegression(C=1 / 3, tol=1e-10, max_iter=1000))


@pytest.mark.parametrize("seed", range(3))
def test_fit_is_the_ridge_regression_of_scikit_learn(seed):
    aligned, cosine, unhealthy, _ = slices(seed=seed)
    got = fit(aligned, cosine, unhealthy)
    X = np.stack([aligned, np.arccos(cosine)], axis=1)
    want = sklearn().fit(X, unhealthy)
    score = got.intercept + got.alignment * X[:, 0] + got.angle * X[:, 1]
    np.testing.assert_allclose(score, want.decision_function(X), atol=1e-3)
    np.testing.assert_allclose(got.score(aligned, cosine), score)


def test_accuracy_is_on_patients_that_were_left_out():
    aligned, cosine, unhealthy, names = slices()
    X = np.stack([aligned, np.arccos(cosine)], axis=1)
    called = cross_val_predict(sklearn(), X, unhealthy, groups=names, cv=GroupKFold(6))
    got = cross_validated(aligned, cosine, Labels(unhealthy, names))
    assert got == pytest.approx((called == unhealthy).mean())


def test_no_patient_is_on_both_sides_and_every_one_is_judged_once():
    names = np.array([f"P{i % 23}" for i in range(230)])
    unhealthy = np.arange(230) % 3 == 0
    judged = np.zeros(230, int)
    folds = list(left_out(names, unhealthy))
    assert len(folds) == 10
    for kept, rest in folds:
        assert not set(names[kept]) & set(names[rest])
        judged += rest
    assert (judged == 1).all()


def test_with_one_patient_nothing_can_be_told():
    aligned, cosine, unhealthy, _ = slices()
    assert cross_validated(aligned, cosine, Labels(unhealthy, np.array(["P"] * 120))) is None


def test_a_statistic_that_never_changes_gets_no_weight():
    _, cosine, unhealthy, _ = slices()
    got = fit(np.full(120, 0.1), cosine, unhealthy)
    assert got.alignment == pytest.approx(0, abs=1e-6)
    assert got.angle > 0
