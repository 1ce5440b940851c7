import numpy as np
import pytest
from support import labelled

from anofpdm.calibrate.choose import choose
from anofpdm.calibrate.peaks import failures, peak_report
from anofpdm.calibrate.sweep import Curves


def with_peaks(where, unhealthy):
    """Curves of five steps whose M_t is largest at step ``where[i]`` of slice i."""
    M = np.full((len(where), 1, 5, 1), 0.1)
    M[np.arange(len(where)), 0, where, 0] = 1.0
    MSE_0 = np.ones((len(where), 5, 1))
    MSE_h = MSE_0[:, None] * np.where(unhealthy, 3.0, 1.0)[:, None, None, None]
    MSE_h[:, :, 0] = 1.0
    return Curves((2.0,), 1 + 100 * np.arange(5), M, MSE_h, MSE_0, M[:, :, -1, 0])


def test_medians_of_either_class_and_the_share_at_L():
    unhealthy = np.array([False, False, False, True, True, True])
    curves = with_peaks([0, 1, 4, 2, 3, 3], unhealthy)
    got = peak_report(curves, 2.0, labelled(unhealthy))
    assert (got.healthy_t_e, got.unhealthy_t_e) == (101, 301)
    assert got.at_L == pytest.approx(1 / 6)


@pytest.mark.parametrize(("at_L", "warned"), [(5, False), (6, True)])
def test_most_unhealthy_slices_without_a_peak_are_a_warning(at_L, warned):
    """Of ten unhealthy slices; where healthy ones peak does not matter."""
    unhealthy = np.arange(20) < 10
    where = np.array([4] * at_L + [2] * (10 - at_L) + [4] * 10)
    curves = with_peaks(where, unhealthy)
    labels = labelled(unhealthy)
    lines = failures(curves, choose({401: curves}, labels), labels)
    assert [line.split(":")[0] for line in lines] == ["no peak"] * warned
    if warned:
        assert "60% of the unhealthy slices M_t is largest at the last timestep, 401" in lines[0]


def test_a_decision_no_better_than_calling_all_the_same_is_a_warning():
    unhealthy = np.arange(20) % 3 == 0
    curves = with_peaks([2] * 20, np.zeros(20, bool))
    labels = labelled(unhealthy)
    (line,) = failures(curves, choose({401: curves}, labels), labels)
    assert line.startswith("no decision")
    assert "calling all the same on 65.0%" in line
