import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bev_perception import geometry
from bev_perception.sensing.poses import PoseBuffer, PoseNotYetError, PoseTooOldError, timeout_remedy

SECOND = 1_000_000_000


def shift(x):
    return geometry.make_transform(np.eye(3), [x, 0, 0])


def test_pose_buffer_tells_not_yet_from_too_old():
    buffer = PoseBuffer(horizon=10 * SECOND)
    with pytest.raises(PoseNotYetError):
        buffer.lookup(0)
    for s in range(20):
        buffer.add(s * SECOND, "odom", shift(s))
    assert buffer.lookup(int(12.25 * SECOND))[1][0, 3] == pytest.approx(12.25)
    assert buffer.lookup(19 * SECOND)[1][0, 3] == 19
    with pytest.raises(PoseNotYetError):
        buffer.lookup(19 * SECOND + 1)
    with pytest.raises(PoseTooOldError, match=r"1\.000 s older"):
        buffer.lookup(8 * SECOND)
    assert len(buffer) == 11 and buffer.newest == 19 * SECOND


def test_between_two_parents_the_earlier_pose_holds():
    buffer = PoseBuffer()
    buffer.add(0, "odom", shift(1))
    buffer.add(SECOND, "map", shift(5))
    parent, pose = buffer.lookup(SECOND // 2)
    assert (parent, pose[0, 3], buffer.parent) == ("odom", 1, "map")


def test_pose_buffer_takes_any_order_and_equal_poses_once():
    buffer = PoseBuffer()
    for s in (3, 1, 2, 2):
        buffer.add(s * SECOND // 10, "odom", shift(s))
    assert len(buffer) == 3
    assert buffer.lookup(SECOND // 4)[1][0, 3] == pytest.approx(2.5)


def test_one_stray_old_pose_changes_nothing_but_a_jump_back_is_followed():
    buffer = PoseBuffer()
    for s in (100, 101, 102):
        buffer.add(s * SECOND, "odom", np.eye(4))
    buffer.add(5 * SECOND, "odom", np.eye(4))
    buffer.add(103 * SECOND, "odom", np.eye(4))
    buffer.add(6 * SECOND, "odom", np.eye(4))
    assert len(buffer) == 4
    buffer.add(5 * SECOND, "odom", shift(5))
    with pytest.raises(PoseNotYetError, match="time may have jumped back"):
        buffer.lookup(5 * SECOND)
    for s in (6, 7):
        buffer.add(s * SECOND, "odom", shift(s))
    assert buffer.newest == 7 * SECOND
    assert buffer.lookup(6 * SECOND)[1][0, 3] == 6


def test_a_stray_future_pose_is_survived():
    buffer = PoseBuffer()
    buffer.add(SECOND, "odom", np.eye(4))
    buffer.add(10**18, "odom", np.eye(4))
    for s in (2, 3, 4):
        buffer.add(s * SECOND, "odom", np.eye(4))
    assert buffer.newest == 4 * SECOND


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 100)), max_size=60))
def test_pose_buffer_is_bounded_and_ordered_whatever_comes(items):
    buffer = PoseBuffer(horizon=10 * SECOND)
    for stamp, seed in items:
        buffer.add(stamp, "odom", shift(seed))
    stamps = list(buffer._stamps)
    assert stamps == sorted(stamps)
    assert not stamps or stamps[-1] - stamps[0] <= 10 * SECOND


def test_pose_buffer_is_bounded_when_time_hardly_passes():
    """A publisher that takes microseconds for nanoseconds never fills the horizon."""
    buffer = PoseBuffer()
    pose = np.eye(4)
    for k in range(PoseBuffer.POSES_KEPT + 500):
        buffer.add(k * 10_000, "odom", pose)
    assert len(buffer) == PoseBuffer.POSES_KEPT
    assert buffer.newest == (PoseBuffer.POSES_KEPT + 499) * 10_000


def test_no_remedy_names_more_than_tf_timeout_can_be():
    assert timeout_remedy(0.53, "0.6 s") == "set tf_timeout to 0.6 s"
    assert "set tf_timeout" not in timeout_remedy(2.3, "2.3 s") and "2 s at most" in timeout_remedy(2.3, "2.3 s")
