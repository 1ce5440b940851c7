"""Intervals against SciPy's bootstrap and against closed forms."""

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import average_precision_score

from anofpdm.calibrate.bootstrap import Bootstrap


def test_interval_of_a_mean_is_scipys():
    rng = np.random.default_rng(0)
    values = rng.random(40)
    names = np.array([f"P{i:02d}" for i in range(40)])
    got = Bootstrap(names).mean(names, values)
    want = bootstrap((values,), np.mean, n_resamples=9999, method="percentile", random_state=1)
    assert got == pytest.approx(tuple(want.confidence_interval), abs=0.01)


def test_patients_are_drawn_not_slices():
    """A hundred slices alike of each of two patients: either patient may be drawn twice."""
    names = np.repeat(["A", "B"], 100)
    assert Bootstrap(names).mean(names, np.repeat([0.0, 1.0], 100)) == (0.0, 1.0)
    mixed = Bootstrap(names).mean(names, np.tile([0.0, 1.0], 100))
    assert mixed == (0.5, 0.5)


def test_items_that_are_missing_or_unknown_do_not_count():
    names = np.array(["A", "B", "B"])
    got = Bootstrap(names).mean(names, np.array([np.nan, 0.0, 1.0]))
    assert got == (0.5, 0.5)
    assert np.isnan(Bootstrap(names).mean(names, np.full(3, np.nan))).all()


def test_precision_of_every_draw_is_scikit_learns_on_the_pixels_drawn():
    rng = np.random.default_rng(0)
    names = np.array(["A", "A", "B", "C", "C", "D"])
    positive = [rng.random(500) < 0.1 for _ in names]
    scores = [(rng.random(500) + 0.5 * p).astype(np.float32) for p in positive]
    boot = Bootstrap(names)
    got = boot.average_precision(names, scores, positive)
    areas = []
    for weights in boot._weights[:300]:
        times = [int(weights["ABCD".index(name)]) for name in names]
        s = np.concatenate([x for x, k in zip(scores, times, strict=True) for _ in range(k)])
        p = np.concatenate([x for x, k in zip(positive, times, strict=True) for _ in range(k)])
        areas.append(average_precision_score(p, s))
    assert got == pytest.approx(tuple(np.percentile(areas, (2.5, 97.5))), abs=0.02)


def test_without_lesions_there_is_no_precision():
    names = np.array(["A", "B"])
    none = [np.zeros(9, bool)] * 2
    assert np.isnan(Bootstrap(names).average_precision(names, [np.ones(9)] * 2, none)).all()
    assert np.isnan(Bootstrap(names).average_precision(names[:0], [], [])).all()
