import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.evaluation.segments import SegmentCounts, count_segments, truth_ids

NAMES = ("car", "bus", "vegetation", "barrier", "free")
FREE = 4


def test_ids_of_truth():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 3, 0, 1, 1])
    instances = np.array([5, 5, 6, 6, 7, 8, 9, 0, 0, 5, 0])
    # 5 and 6 have two classes each; of 7, 8 and 9 only 7 is a thing
    assert truth_ids(labels, instances, NAMES).tolist() == [0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0]
    assert truth_ids(labels[:3], instances[:3], NAMES).tolist() == [5, 5, 6]
    assert truth_ids(labels[:0], instances[:0], NAMES).tolist() == []


def count(truth, true_ids, found, found_ids, agreed=None, smallest=1):
    arrays = [np.array(a) for a in (truth, true_ids, found, found_ids)]
    agreed = np.ones((1, len(truth)), bool) if agreed is None else np.array(agreed, bool)
    return count_segments(*arrays, agreed, len(NAMES), smallest)


def test_by_hand():
    truth = [0, 0, 0, 0, 0, 1, 1, 2, 2, 4]
    ids = [1, 1, 1, 2, 2, 1, 1, 0, 0, 0]
    found = [0, 0, 0, 0, 4, 0, 0, 2, 4, 1]
    found_ids = [3, 3, 4, 5, 0, 6, 6, 9, 0, 1]
    counts = count(truth, ids, found, found_ids)
    # car 1 has IoU 2/3 with 3; car 2 has 1/2 with 5, which is not more than half; vegetation 1/2 as well
    assert counts.matched.tolist() == [[1, 0, 0, 0, 0]]
    assert counts.false.tolist() == [[3, 1, 1, 0, 0]]  # 4, 5 and 6; a bus where space is free; vegetation
    assert counts.missed.tolist() == [[1, 1, 1, 0, 0]]
    assert counts.iou_sum[0, 0] == pytest.approx(2 / 3)
    np.testing.assert_allclose(counts.quality, [[2 / 3 * 1 / 3, 0, 0, np.nan, np.nan]])
    small = count(truth, ids, found, found_ids, smallest=2)
    assert small.false.tolist() == [[1, 0, 0, 0, 0]] and small.missed.tolist() == [[1, 1, 1, 0, 0]]


def test_elements_that_do_not_agree_are_not_shared_but_count_in_the_areas():
    counts = count([0] * 4, [1] * 4, [0] * 4, [0] * 4, [[1, 1, 1, 0], [1, 1, 0, 0]])
    assert counts.matched[:, 0].tolist() == [1, 0]
    assert counts.iou_sum[:, 0].tolist() == [3 / 5, 0]
    assert counts.false[:, 0].tolist() == counts.missed[:, 0].tolist() == [0, 1]


def test_counts_add_up():
    a, b = count([0, 0], [1, 1], [0, 0], [1, 1]), count([0, 0], [1, 1], [2, 2], [1, 1])
    both = a + b
    assert both.matched[0].tolist() == [1, 0, 0, 0, 0] and both.missed[0].tolist() == [1, 0, 0, 0, 0]
    np.testing.assert_allclose(both.quality[0], [1 * 1 / 1.5, np.nan, 0, np.nan, np.nan])
    nothing = SegmentCounts(*[np.zeros((1, 5))] * 4)
    assert np.isnan(nothing.quality).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(1, 4), st.sampled_from([1, 3]))
def test_counting_equals_the_definition(seed, n, ids, smallest):
    """Sets of elements, pair by pair."""
    rng = np.random.default_rng(seed)
    truth = np.sort(rng.integers(0, 5, n))
    truth[rng.random(n) < 0.05] = 255
    found = np.where(rng.random(n) < 0.8, np.minimum(truth, FREE), rng.integers(0, 5, n))
    true_ids = rng.integers(0, ids, n)
    found_ids = np.where(rng.random(n) < 0.8, true_ids, rng.integers(0, ids, n))
    agreed = rng.random((2, n)) < 0.9
    counts = count(truth, true_ids, found, found_ids, agreed, smallest)

    def segments(labels, numbers):
        keys = sorted({(c, k) for c, k in zip(labels, numbers, strict=True) if c < FREE})
        return {key: set(np.flatnonzero((labels == key[0]) & (numbers == key[1])).tolist()) for key in keys}

    a, b = segments(truth, true_ids), segments(found, found_ids)
    for t in range(2):
        for label in range(5):
            mine = {k: s for k, s in a.items() if k[0] == label}
            theirs = {k: s for k, s in b.items() if k[0] == label}
            close = set(np.flatnonzero(agreed[t]).tolist())
            pairs = {
                (p, q): len(s & r & close) / (len(s) + len(r) - len(s & r & close))
                for p, s in mine.items()
                for q, r in theirs.items()
            }
            pairs = {pair: iou for pair, iou in pairs.items() if iou > 0.5}
            matched = [{pair[side] for pair in pairs} for side in (0, 1)]
            assert counts.matched[t, label] == len(pairs)
            assert counts.iou_sum[t, label] == pytest.approx(sum(pairs.values()))
            assert counts.missed[t, label] == sum(len(s) >= smallest for k, s in mine.items() if k not in matched[0])
            assert counts.false[t, label] == sum(len(s) >= smallest for k, s in theirs.items() if k not in matched[1])
