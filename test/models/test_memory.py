import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bev_perception.models.memory import FeatureQueue, FrameFeatures

SECOND = 1_000_000_000


def frame(seconds):
    return FrameFeatures(
        (torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 2, 5)),
        np.tile(np.eye(4), (2, 1, 1)),
        np.ones(2, bool),
        np.zeros(2, np.int64),
        round(seconds * SECOND),
    )


def remembered(times, capacity=100, max_age=100):
    queue = FeatureQueue(capacity, max_age * SECOND)
    for seconds in times:
        queue = queue.push(frame(seconds))
    return queue


def ages(queue, now, count=3):
    current = frame(now)
    return [round((current.stamp - f.stamp) / SECOND, 6) for f in queue.history(current, count, 0.5)]


def test_history_takes_the_trained_spacing_from_any_rate():
    assert ages(remembered(np.arange(0, 4, 0.5)), 4.0) == [0.5, 1.0, 1.5]
    assert ages(remembered(np.arange(48) / 12), 4.0) == [0.5, 1.0, 1.5]
    assert ages(remembered(np.arange(40) / 10), 4.0) == [0.5, 1.0, 1.5]
    assert ages(remembered([0, 1, 2, 3]), 4.0, 4) == [1, 1, 1, 2]  # slower than trained: the nearest there is
    assert ages(remembered([3.9, 3.4, 2.9]), 4.0) == [0.6, 1.1, 1.1]


def test_short_history_repeats_the_oldest_and_none_the_current():
    assert ages(remembered([3.5, 3.0]), 4.0, 5) == [0.5, 1, 1, 1, 1]
    current = frame(1)
    assert FeatureQueue(3, SECOND).history(current, 2, 0.5) == [current, current]


def test_push_leaves_the_old_queue_as_it_was_and_drops_the_oldest():
    first = remembered([1, 2, 3], capacity=3)
    second = first.push(frame(4))
    assert [f.stamp // SECOND for f in first.entries] == [3, 2, 1]
    assert [f.stamp // SECOND for f in second.entries] == [4, 3, 2]
    assert len(second) == 3
    assert second.nbytes == 3 * (2 * 3 * 4 * 5 + 2 * 2 * 5) * 4


def test_what_is_too_old_to_be_looked_at_is_not_kept():
    queue = remembered([0, 1, 2, 3, 4], max_age=2)
    assert [f.stamp // SECOND for f in queue.entries] == [4, 3, 2]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.integers(1, 8))
def test_every_pick_is_the_nearest(times, count):
    queue = remembered(times)
    current = frame(10)
    for k, picked in enumerate(queue.history(current, count, 0.5), start=1):
        target = current.stamp - k * SECOND // 2
        assert abs(picked.stamp - target) == min(abs(f.stamp - target) for f in queue.entries)
