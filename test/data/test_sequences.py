"""Streams of sequences: a function of seed, slot and step; what is left out and turned around."""

import numpy as np
import pytest

from bev_perception.data.sequences import SequenceStreams, shard_scenes, skip_frames, split_scenes

SCENES = [list(range(7)), list(range(7, 12)), [12]]


def streams(**settings):
    return SequenceStreams(split_scenes(SCENES, 2), **{"slots": 3, "seed": 5, "skip": 0.5, "reverse": 0.3, **settings})


def test_scenes_are_cut_in_parts_of_equal_length():
    assert split_scenes(SCENES, 2) == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11], [12]]
    assert split_scenes([[0, 2, 4], [1, 3]], 1) == [[0, 2, 4], [1, 3]]


def test_a_stream_can_be_read_from_anywhere():
    """Read backwards, or at a single step by a new object, the streams are the same."""
    whole = streams()
    steps = [(slot, step) for slot in range(3) for step in range(200)]
    wanted = {at: whole.at(*at) for at in steps}
    again = streams()
    assert {at: again.at(*at) for at in reversed(steps)} == wanted
    assert streams().at(2, 199) == wanted[2, 199]


def test_slots_and_seeds_differ():
    def read(slot, **settings):
        found = streams(**settings)
        return [found.at(slot, step).frame for step in range(50)]

    assert read(0) != read(1)
    assert read(0) != read(0, seed=6)


def test_all_slots_together_read_every_sequence_once_a_pass():
    found = streams(skip=0.0, reverse=0.0, slots=5)
    firsts = [found.at(slot, 0).frame for slot in range(5)]  # 5 sequences for 5 slots: one pass
    assert sorted(firsts) == [0, 4, 7, 10, 12]


def test_every_turn_is_one_or_two_frames_on_and_ends_are_read():
    found = streams(slots=1)
    turns = [found.at(0, step) for step in range(3000)]
    ends = {(0, 3), (4, 6), (7, 9), (10, 11), (12, 12)}
    visits = {}
    for turn in turns:
        visits.setdefault(turn.visit, []).append(turn.frame)
    read = list(visits.values())[:-1]
    assert {(min(v), max(v)) for v in read} == ends
    backwards = [v[0] > v[-1] for v in read if len(v) > 1]
    assert np.mean(backwards) == pytest.approx(0.3, abs=0.05)
    strides = np.concatenate([np.abs(np.diff(v)) for v in read if max(v) == 3])
    assert set(strides) == {1, 2}


def test_nothing_is_skipped_where_it_is_the_last():
    assert skip_frames([4, 5, 6], [True, True, True]) == [4, 6]
    assert skip_frames([4, 5, 6, 7], [True] * 4) == [4, 6, 7]
    assert skip_frames([4, 5, 6], [False, True, True]) == [4, 5, 6]
    assert skip_frames([4], [True]) == [4]


def test_more_processes_than_scenes():
    assert shard_scenes(SCENES, 8) == [SCENES[0], [], [], [], [], [], [], [*SCENES[1], *SCENES[2]]]
