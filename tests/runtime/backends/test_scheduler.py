"""Who is in a slot and when, on slots that compute nothing."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anofpdm.runtime.backends.scheduler import run
from anofpdm.runtime.method.process import Slice

X0 = np.zeros((1, 2, 2), np.float32)


class CountedSlots:
    """Slots in which the slice of key k stays for ``lengths[k]`` steps; its result is the number of
    the step after which it was done."""

    def __init__(self, slots, lengths, late=0):
        self.slots, self.lengths, self.late = slots, lengths, late
        self.left, self.pending, self.steps, self.batches = {}, [], 0, []

    @property
    def free(self):
        return self.slots - len(self.left)

    @property
    def busy(self):
        return bool(self.left or self.pending)

    def enter(self, item):
        assert self.free
        self.left[item.key] = [item, self.lengths[item.key]]

    def step(self):
        assert self.busy
        self.steps += 1
        self.batches.append(len(self.left))
        for entry in self.left.values():
            entry[1] -= 1
        for key in [key for key, (_, left) in self.left.items() if left == 0]:
            self.pending.append((self.steps, self.left.pop(key)[0]))

    def finished(self):
        while self.pending and self.pending[0][0] + self.late <= self.steps:
            step, item = self.pending.pop(0)
            yield item, step


def items(count):
    return [Slice(k, X0) for k in range(count)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 6), max_size=20), st.integers(1, 7), st.integers(0, 3))
def test_every_slice_once_and_the_batch_stays_full(lengths, count, late):
    slots = CountedSlots(count, lengths, late)
    results = {item.key: step for item, step in run(slots, items(len(lengths)))}
    assert sorted(results) == list(range(len(lengths)))
    assert not slots.busy
    # A slot is empty only where no slices wait: until the last one has entered all are full.
    free, done = [0] * count, []  # when each slot is free
    for length in lengths:
        first = min(range(count), key=free.__getitem__)
        free[first] += length
        done.append(free[first])
    assert results == dict(enumerate(done))
    full = max((end - length for end, length in zip(done, lengths, strict=True)), default=0)
    assert all(batch == count for batch in slots.batches[:full])


def test_slices_are_fetched_when_there_is_a_slot():
    fetched = []

    def stream():
        for item in items(6):
            fetched.append(item.key)
            yield item

    results = run(CountedSlots(2, [3, 1, 1, 1, 1, 1]), stream())
    assert next(results)[0].key == 1
    assert fetched == [0, 1]
    assert next(results)[0].key == 2
    assert fetched == [0, 1, 2]
    assert len(list(results)) == 4


def test_slices_that_have_not_come_hold_nothing_up():
    """None: the slots go on meanwhile, and the stream is read again after each step."""
    slots = CountedSlots(3, [2, 5, 1])
    first, second, third = items(3)
    stream = iter([first, None, None, second, None, third])
    results = [(item.key, step) for item, step in run(slots, stream)]
    assert results == [(0, 2), (2, 4), (1, 7)]
    # With empty slots, the stream is read again at once, without a step.
    slots = CountedSlots(3, [1])
    assert [step for _, step in run(slots, iter([None, None, first]))] == [1]


@pytest.mark.parametrize("after", [0, 1, 4])
def test_cancelling_ends_it_before_the_next_step(after):
    slots, calls = CountedSlots(2, [10, 10]), itertools.count()
    assert list(run(slots, items(2), lambda: next(calls) >= after)) == []
    assert slots.steps == after


def test_no_slices_no_steps():
    slots = CountedSlots(2, [])
    assert list(run(slots, [])) == []
    assert slots.steps == 0
