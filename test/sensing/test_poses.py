import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bev_perception import geometry
from bev_perception.sensing.poses import PoseBuffer, PoseNotYetError, PoseTooOldError

SECOND = 1_000_000_000


def test_pose_buffer_tells_not_yet_from_too_old():
    buffer = PoseBuffer(horizon=10 * SECOND)
    with pytest.raises(PoseNotYetError):
        buffer.lookup(0)
    for s in range(20):
        buffer.add(s * SECOND, geometry.make_transform(np.eye(3), [s, 0, 0]))
    assert buffer.lookup(int(12.25 * SECOND))[0, 3] == pytest.approx(12.25)
    assert buffer.lookup(19 * SECOND)[0, 3] == 19
    with pytest.raises(PoseNotYetError):
        buffer.lookup(19 * SECOND + 1)
    with pytest.raises(PoseTooOldError, match=r"1\.000 s older"):
        buffer.lookup(8 * SECOND)
    assert len(buffer) == 11 and buffer.newest == 19 * SECOND


def test_pose_buffer_does_not_interpolate_over_a_hole():
    buffer = PoseBuffer(max_gap=2 * SECOND)
    buffer.add(0, np.eye(4))
    buffer.add(3 * SECOND, np.eye(4))
    with pytest.raises(PoseTooOldError, match="hole"):
        buffer.lookup(SECOND)


def test_pose_buffer_takes_any_order_and_replaces_equal_stamps():
    buffer = PoseBuffer()
    for s in (3, 1, 2, 2):
        buffer.add(s * SECOND // 10, geometry.make_transform(np.eye(3), [s, 0, 0]))
    assert len(buffer) == 3
    assert buffer.lookup(SECOND // 4)[0, 3] == pytest.approx(2.5)


def test_one_stray_old_pose_changes_nothing_but_a_jump_back_is_followed():
    buffer = PoseBuffer()
    for s in (100, 101, 102):
        buffer.add(s * SECOND, np.eye(4))
    buffer.add(5 * SECOND, np.eye(4))
    buffer.add(103 * SECOND, np.eye(4))
    buffer.add(6 * SECOND, np.eye(4))
    assert len(buffer) == 4
    buffer.add(5 * SECOND, geometry.make_transform(np.eye(3), [5, 0, 0]))
    with pytest.raises(PoseNotYetError, match="time may have jumped back"):
        buffer.lookup(5 * SECOND)
    for s in (6, 7):
        buffer.add(s * SECOND, geometry.make_transform(np.eye(3), [s, 0, 0]))
    assert buffer.newest == 7 * SECOND
    assert buffer.lookup(6 * SECOND)[0, 3] == 6


def test_a_stray_future_pose_is_survived():
    buffer = PoseBuffer()
    buffer.add(SECOND, np.eye(4))
    buffer.add(10**18, np.eye(4))
    for s in (2, 3, 4):
        buffer.add(s * SECOND, np.eye(4))
    assert buffer.newest == 4 * SECOND


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 100)), max_size=60))
def test_pose_buffer_is_bounded_and_ordered_whatever_comes(items):
    buffer = PoseBuffer(horizon=20 * SECOND)
    for stamp, seed in items:
        buffer.add(stamp, geometry.make_transform(np.eye(3), [seed, 0, 0]))
    stamps = list(buffer._stamps)
    assert stamps == sorted(set(stamps))
    assert not stamps or stamps[-1] - stamps[0] <= 20 * SECOND


def test_pose_buffer_is_bounded_when_time_hardly_passes():
    """A publisher that takes microseconds for nanoseconds never fills the horizon."""
    buffer = PoseBuffer()
    pose = np.eye(4)
    for k in range(PoseBuffer.POSES_KEPT + 500):
        buffer.add(k * 10_000, pose)
    assert len(buffer) == PoseBuffer.POSES_KEPT
    assert buffer.newest == (PoseBuffer.POSES_KEPT + 499) * 10_000
