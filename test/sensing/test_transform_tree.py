import numpy as np
import pytest

from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.sensing.poses import PoseNotYetError, PoseTooOldError
from bev_perception.sensing.transform_tree import NoTransformError, TransformTree

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
    with pytest.raises(NoTransformError, match="'lidar' to 'odom'.*known child frames: cam"):
        tree.lookup("lidar", "odom", 0)
    tree.add("odom", "base_link", SECOND, shift(0))
    with pytest.raises(PoseNotYetError, match="odom -> base_link"):
        tree.lookup("cam", "odom", 2 * SECOND)
    with pytest.raises(PoseTooOldError, match="odom -> base_link"):
        tree.lookup("cam", "odom", 0)


def test_a_loop_is_an_error_and_a_link_may_change_its_kind_and_parent():
    tree = TransformTree()
    tree.set_static("a", "b", shift(1))
    tree.set_static("b", "a", shift(1))
    with pytest.raises(NoTransformError, match="loop"):
        tree.lookup("a", "c", 0)
    tree.add("world", "a", 0, shift(5))
    assert np.allclose(tree.lookup("b", "world", 0)[:3, 3], [6, 0, 0])
    tree.add("map", "a", 0, shift(7))
    assert np.allclose(tree.lookup("b", "map", 0)[:3, 3], [8, 0, 0])
    tree.set_static("map", "a", shift(9))
    assert np.allclose(tree.lookup("b", "map", 10**15)[:3, 3], [10, 0, 0])


def test_links_nobody_updates_are_forgotten_first():
    tree = TransformTree()
    for k in range(3 * TransformTree.LINKS_KEPT):
        tree.add("map", f"object_{k}", k * SECOND, shift(k))
        tree.add("odom", "base_link", k * SECOND, shift(k))
    assert len(tree._moving) == TransformTree.LINKS_KEPT
    assert np.allclose(tree.lookup("base_link", "odom", k * SECOND)[:3, 3], [k, 0, 0])


def test_a_burst_of_foreign_links_does_not_forget_those_that_are_looked_up():
    """A tracker may publish more objects in one message than are kept, between two poses of the vehicle."""
    tree = TransformTree()
    tree.add("odom", "base_link", 0, shift(0))
    assert np.allclose(tree.lookup("base_link", "odom", 0), shift(0))
    for k in range(2 * TransformTree.LINKS_KEPT):
        tree.add("map", f"object_{k}", 0, shift(k))
    tree.add("odom", "base_link", SECOND, shift(10))
    assert np.allclose(tree.lookup("base_link", "odom", SECOND // 2)[:3, 3], [5, 0, 0])
    assert len(tree._moving) == TransformTree.LINKS_KEPT


def test_static_links_are_bounded_and_those_looked_up_stay():
    tree = TransformTree()
    tree.set_static("base_link", "cam", shift(1))
    tree.lookup("cam", "base_link", 0)
    for k in range(2 * TransformTree.STATIC_LINKS_KEPT):
        tree.set_static("map", f"object_{k}", shift(k))
    assert len(tree._static) == TransformTree.STATIC_LINKS_KEPT
    assert np.allclose(tree.lookup("cam", "base_link", 0), shift(1))


def test_what_is_known_to_be_needed_is_bounded_too():
    tree = TransformTree()
    for k in range(3 * TransformTree.LINKS_KEPT):
        tree.add("map", f"object_{k}", 0, shift(k))
        tree.lookup(f"object_{k}", "map", 0)
    assert len(tree._moving) == TransformTree.LINKS_KEPT
    assert len(tree._needed) <= TransformTree.LINKS_KEPT + TransformTree.STATIC_LINKS_KEPT


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
