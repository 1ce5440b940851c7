import numpy as np
import pytest
from sklearn import metrics as sk

from anofpdm.calibrate.metrics import area_under_roc, average_precision, dice, iou

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("ties", [False, True])
def test_ranking_figures_agree_with_scikit_learn(ties):
    for _ in range(20):
        scores = RNG.random(200)
        scores = np.round(scores, 1) if ties else scores
        positive = RNG.random(200) < 0.3 * scores + 0.1
        want = sk.average_precision_score(positive, scores)
        assert average_precision(scores, positive) == pytest.approx(want)
        want = sk.roc_auc_score(positive, scores)
        assert area_under_roc(scores, positive) == pytest.approx(want)


def test_overlap_figures_agree_with_scikit_learn():
    for _ in range(20):
        one, two = RNG.random((2, 100)) < 0.3
        assert dice(one, two) == pytest.approx(sk.f1_score(two, one))
        assert iou(one, two) == pytest.approx(sk.jaccard_score(two, one))


def test_empty_masks_agree_perfectly_and_one_class_has_no_ranking():
    empty, full = np.zeros(5, bool), np.ones(5, bool)
    assert dice(empty, empty) == iou(empty, empty) == 1.0
    assert dice(empty, full) == iou(empty, full) == 0.0
    assert np.isnan(average_precision(np.arange(5.0), empty))
    assert np.isnan(area_under_roc(np.arange(5.0), full))
