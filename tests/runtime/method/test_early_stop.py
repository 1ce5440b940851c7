import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transcription import is_over

from anofpdm.runtime.method.early_stop import StopRule, StopWatch

CURVES = st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 2), min_size=1, max_size=30).map(
    np.array
)


def test_by_hand():
    M = np.array([[1.0], [3.0], [2.0], [2.8], [2.0], [1.0], [5.0]])
    assert StopRule(0.9, 1).steps(M) == 3
    assert StopRule(0.9, 2).steps(M) == 6
    assert StopRule(0.9, 3).steps(M) == 7
    both = np.concatenate([M, np.arange(7.0)[:, None]], axis=1)
    assert StopRule(0.9, 1).steps(both) == 7


@given(CURVES, st.floats(0.1, 1), st.integers(1, 5))
def test_steps_of_whole_curves_are_those_of_a_watch_step_by_step(M, drop, patience):
    rule = StopRule(drop, patience)
    watch, best, steps = StopWatch(rule), np.full(2, -np.inf), 0
    for row in M:
        best, steps = np.maximum(best, row), steps + 1
        if watch.certain(row, best):
            break
    assert rule.steps(M) == steps
    by_definition = next((i for i in range(1, len(M)) if is_over(M[:i], drop, patience)), len(M))
    assert steps == by_definition


@given(CURVES)
def test_a_rule_that_is_never_met_takes_all_steps(M):
    assert StopRule(0.5, len(M)).steps(M) == len(M)


@pytest.mark.parametrize(("drop", "patience"), [(0, 1), (1.1, 1), (float("nan"), 1), (0.5, 0)])
def test_impossible_rules(drop, patience):
    with pytest.raises(ValueError, match="a stop rule needs"):
        StopRule(drop, patience)
