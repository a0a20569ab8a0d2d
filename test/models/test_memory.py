import dataclasses

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bev_perception.models.memory import FrameFeatures, Memory, device_bytes

SECOND = 1_000_000_000
LEVELS = (torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 2, 5))


def frame(seconds, levels=LEVELS):
    return FrameFeatures(
        levels, np.tile(np.eye(4), (2, 1, 1)), np.ones(2, bool), np.zeros(2, np.int64), round(seconds * SECOND)
    )


def remembered(times, count=3, capacity=100, missing="oldest"):
    memory = Memory(count, 0.5, capacity, missing)
    for seconds in times:
        memory = memory.after(frame(seconds), None, due=True)
    return memory


def ages(memory, now):
    found = memory.history(round(now * SECOND))
    return [None if f is None else round(now - f.stamp / SECOND, 6) for f in found]


def test_history_takes_the_trained_spacing_from_any_rate():
    assert ages(remembered(np.arange(0, 4, 0.5)), 4.0) == [0.5, 1.0, 1.5]
    assert ages(remembered(np.arange(48) / 12), 4.0) == [0.5, 1.0, 1.5]
    assert ages(remembered(np.arange(40) / 10), 4.0) == [0.5, 1.0, 1.5]
    assert ages(remembered([0, 1, 2, 3], count=4), 4.0) == [1, 1, 1, 2]  # slower than trained: the nearest there is
    assert ages(remembered([3.9, 3.4, 2.9]), 4.0) == [0.6, 1.1, 1.1]


def test_a_short_history_repeats_the_oldest_frame_or_the_current_one():
    assert ages(remembered([3.0, 3.5], count=5), 4.0) == [0.5, 1, 1, 1, 1]
    assert ages(remembered([3.0, 3.5], count=5, missing="current"), 4.0) == [0.5, 1, None, None, None]
    assert ages(remembered([2.8], count=3, missing="current"), 4.0) == [1.2, 1.2, None]  # up to half a step too young
    assert ages(remembered([], count=2), 1.0) == [None, None]


def test_entries_that_are_too_young_are_the_last_choice():
    memory = dataclasses.replace(remembered([2.5, 3.9], count=1), shortest=0.2)
    assert ages(memory, 4.0) == [1.5] and ages(memory, 4.1) == [0.2]
    assert ages(dataclasses.replace(memory, entries=memory.entries[:1]), 4.0) == [0.1]


def test_a_new_memory_leaves_the_old_one_as_it_was_and_drops_the_oldest():
    first = remembered([1, 2, 3], capacity=3)
    second = first.after(frame(4), None, due=True)
    assert [f.stamp // SECOND for f in first.entries] == [3, 2, 1]
    assert [f.stamp // SECOND for f in second.entries] == [4, 3, 2]
    assert len(second) == 3


def test_what_is_carried_is_kept_whether_the_frame_is_remembered_or_not():
    memory = remembered([1]).after(frame(2), "ids", due=False)
    assert (len(memory), memory.carried) == (1, "ids")
    wiped = memory.wiped()
    assert (len(wiped), wiped.carried) == (0, "ids")


def test_less_room_lets_the_oldest_go():
    memory = remembered([1, 2, 3, 4]).with_capacity(2)
    assert [f.stamp // SECOND for f in memory.entries] == [4, 3]
    assert len(memory.after(frame(5), None, due=True)) == 2
    assert len(memory.with_capacity(3).after(frame(5), None, due=True)) == 3


def test_tensors_that_memories_share_count_once():
    one = (2 * 3 * 4 * 5 + 2 * 2 * 5) * 4
    own = Memory(1, 0.5, 3).after(frame(2, tuple(level.clone() for level in LEVELS)), None, due=True)
    shared = remembered([1])
    assert device_bytes([shared]) == one
    assert device_bytes([shared, shared.after(frame(2), None, due=True)]) == one
    assert device_bytes([shared, own]) == 2 * one
    assert device_bytes([]) == 0


@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.integers(1, 8))
def test_every_pick_is_the_nearest(times, count):
    memory = remembered(times, count)
    for k, picked in enumerate(memory.history(10 * SECOND), start=1):
        target = 10 * SECOND - k * SECOND // 2
        assert abs(picked.stamp - target) == min(abs(f.stamp - target) for f in memory.entries)
