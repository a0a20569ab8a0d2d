import numpy as np
import pytest

from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.sensing.poses import PoseNotYetError, PoseTooOldError
from bev_perception.sensing.transform_tree import TransformTree
from bev_perception.sensing.transforms import NoTransformError

SECOND = 1_000_000_000


def shift(x, y=0.0, yaw=0.0):
    return make_transform(rotation_from_yaw(yaw), [x, y, 0])


def test_lookup_through_static_and_moving_links():
    tree = TransformTree()
    tree.set_static("base_link", "mast", shift(1))
    tree.set_static("mast", "cam", shift(0, 2))
    tree.add("odom", "base_link", 0, shift(0))
    tree.add("odom", "base_link", SECOND, shift(10))
    cam2odom = tree.lookup("cam", "odom", SECOND // 2)
    assert np.allclose(cam2odom[:3, 3], [6, 2, 0])
    assert np.allclose(tree.lookup("odom", "cam", SECOND // 2) @ cam2odom, np.eye(4))
    assert np.allclose(tree.lookup("cam", "mast", 999 * SECOND), shift(0, 2))  # a static link holds at any time
    assert np.allclose(tree.lookup("cam", "cam", 5), np.eye(4))


def test_errors_name_the_frames():
    tree = TransformTree()
    with pytest.raises(NoTransformError, match="no tf has arrived"):
        tree.lookup("cam", "odom", 0)
    tree.set_static("base_link", "cam", shift(1))
    with pytest.raises(
        NoTransformError, match="'lidar' to 'odom'.*known child frames: cam.*; frames without a parent: "
    ):
        tree.lookup("lidar", "odom", 0)
    tree.add("odom", "base_link", SECOND, shift(0))
    with pytest.raises(PoseNotYetError, match="odom -> base_link"):
        tree.lookup("cam", "odom", 2 * SECOND)
    with pytest.raises(PoseTooOldError, match="odom -> base_link"):
        tree.lookup("cam", "odom", 0)


def test_a_loop_is_an_error_and_a_link_may_change_its_parent():
    tree = TransformTree()
    tree.set_static("a", "b", shift(1))
    tree.set_static("b", "a", shift(1))
    with pytest.raises(NoTransformError, match="loop"):
        tree.lookup("a", "c", 0)
    tree.set_static("world", "a", shift(5))
    assert np.allclose(tree.lookup("b", "world", 0)[:3, 3], [6, 0, 0])
    tree.add("map", "a", 0, shift(7))
    assert np.allclose(tree.lookup("b", "map", 10**15)[:3, 3], [8, 0, 0])


def test_what_is_known_to_be_needed_is_bounded():
    tree = TransformTree()
    for k in range(3 * TransformTree.NEEDED_KEPT):
        tree.add("map", f"object_{k}", 0, shift(k))
        tree.lookup(f"object_{k}", "map", 0)
    assert len(tree._needed) == TransformTree.NEEDED_KEPT


def test_errors_stay_short_however_many_frames_there_are():
    tree = TransformTree()
    tree.set_static("base_link", "cam", shift(1))
    for k in range(200):
        tree.add("map", f"aa_object_{k}", 0, shift(k))
    with pytest.raises(NoTransformError, match="known child frames: cam, aa_object_0, .* and 191 more") as raised:
        tree.lookup("lidar", "odom", 0)
    assert len(str(raised.value)) < 300
    for k in range(200):
        tree.set_static(f"loop_{(k + 1) % 200}", f"loop_{k}", shift(1))
    with pytest.raises(NoTransformError, match="loop.* and 191 more") as raised:
        tree.lookup("loop_0", "odom", 0)
    assert len(str(raised.value)) < 300
