"""One table of cases for whatever holds the transforms, and our tree against tf2's rules."""

import importlib
import random
import sys
import time
import types

import numpy as np
import pytest
import tf2_reference
from scipy.spatial.transform import Rotation

from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.sensing import transforms
from bev_perception.sensing.poses import PoseNotYetError, PoseTooOldError
from bev_perception.sensing.tf2_buffer import Tf2Transforms
from bev_perception.sensing.transform_tree import TransformTree
from bev_perception.sensing.transforms import NoTransformError, open_transforms
from bev_perception.strict import UserError

SECOND = 10**9
NOW = 1_800_000_000 * SECOND


def shift(x, y=0.0, yaw=0.0):
    return make_transform(rotation_from_yaw(yaw), [x, y, 0])


def stand_in() -> dict[str, types.ModuleType]:
    """tf2_py, and geometry_msgs where it is not installed."""
    modules = {"tf2_py": tf2_reference}
    if importlib.util.find_spec("geometry_msgs") is None:
        space = types.SimpleNamespace

        def message():
            return space(header=space(stamp=space()), transform=space(rotation=space(), translation=space()))

        modules["geometry_msgs.msg"] = types.ModuleType("geometry_msgs.msg")
        modules["geometry_msgs.msg"].TransformStamped = message
    return modules


@pytest.fixture(params=["tree", "tf2 stand-in", "tf2"])
def holder(request, monkeypatch):
    if request.param == "tree":
        return TransformTree()
    if request.param == "tf2":
        pytest.importorskip("tf2_py")
    else:
        for name, module in stand_in().items():
            monkeypatch.setitem(sys.modules, name, module)
    return Tf2Transforms()


def drive(holder, seconds=3.0, rate=20, start=NOW):
    """odom -> base_link along x at 1 m/s, and a camera on it."""
    holder.set_static("base_link", "cam", shift(1))
    for k in range(round(seconds * rate) + 1):
        holder.add("odom", "base_link", start + k * SECOND // rate, shift(k / rate))


def place(holder, seconds, source="cam", target="odom"):
    return holder.lookup(source, target, NOW + round(seconds * SECOND))[0, 3]


def self_link(holder):
    for link in (("base_link", "base_link"), ("cam", "cam"), ("", "base_link"), ("", "cam"), ("odom", "")):
        with pytest.raises(UserError, match="own parent|has no name"):
            holder.add(*link, NOW + SECOND, shift(9))
        with pytest.raises(UserError, match="own parent|has no name"):
            holder.set_static(*link, shift(9))


def static_resent_on_tf(holder):
    holder.add("base_link", "cam", NOW + SECOND, shift(1))


def static_resent_on_tf_again_and_again(holder):
    for k in range(3):
        holder.add("base_link", "cam", NOW + k * SECOND, shift(1))


def moving_first_then_static(holder):
    holder.add("base_link", "cam2", NOW, shift(1))
    holder.set_static("base_link", "cam2", shift(1))
    drive(holder)
    assert place(holder, 2.5, "cam2", "base_link") == 1


def loop_once(holder):
    holder.add("base_link", "odom", NOW + SECOND, shift(0))


def loop_for_a_second(holder):
    for k in range(20):
        holder.add("base_link", "odom", NOW + k * SECOND // 20, shift(0))


def loop_above(holder):
    holder.add("map", "odom", NOW, shift(0))
    holder.add("base_link", "map", NOW, shift(0))


def static_loop(holder):
    holder.set_static("base_link", "odom", shift(0))


def other_parent_once(holder):
    holder.add("map", "base_link", NOW + SECOND // 40, shift(5))


def foreign_frames(holder):
    for k in range(10_000):
        holder.add("map", f"object_{k}", NOW, shift(k))


def foreign_static_frames(holder):
    for k in range(10_000):
        holder.set_static("map", f"thing_{k}", shift(k))


def strange_future(holder):
    holder.add("odom", "base_link", NOW + 10**6 * SECOND, shift(0))
    drive(holder)


def strange_past(holder):
    holder.add("odom", "base_link", NOW - 10**6 * SECOND, shift(0))


TROUBLE = [
    self_link,
    static_resent_on_tf,
    static_resent_on_tf_again_and_again,
    moving_first_then_static,
    loop_once,
    loop_for_a_second,
    loop_above,
    static_loop,
    other_parent_once,
    foreign_frames,
    foreign_static_frames,
    strange_future,
    strange_past,
]


@pytest.mark.parametrize("trouble", TROUBLE, ids=lambda case: case.__name__)
def test_after_a_second_of_good_data_nothing_is_left_of_a_trouble(holder, trouble):
    if holder.__class__ is Tf2Transforms and trouble in (foreign_frames, foreign_static_frames):
        pytest.skip("the stand-in searches everything") if sys.modules.get("tf2_py") is tf2_reference else None
    drive(holder, 0.5)
    assert place(holder, 0.25) == pytest.approx(1.25)
    trouble(holder)
    drive(holder)
    assert place(holder, 2.525) == pytest.approx(3.525)
    assert place(holder, 0, "cam", "base_link") == 1
    if trouble is not static_loop:  # up from odom it is a loop for tf2 as well
        assert place(holder, 2.5, "odom", "cam") == pytest.approx(-3.5)


def test_the_newest_parent_is_followed_and_named(holder):
    drive(holder)
    assert holder.take_disputes() == {}
    for k in range(61, 100):
        holder.add("map", "base_link", NOW + k * SECOND // 20, shift(100))
    assert place(holder, 4, target="map") == pytest.approx(101)
    assert place(holder, 1) == pytest.approx(2)  # before, the other one
    with pytest.raises(NoTransformError):
        place(holder, 4)
    disputes = holder.take_disputes()
    assert list(disputes) == ["base_link"] and "map" in disputes["base_link"] and "odom" in disputes["base_link"]
    assert holder.take_disputes() == {}


@pytest.mark.parametrize("period", [0.3, 1.5, 3, 9.5])
def test_slow_links_work_within_ten_seconds(holder, period):
    """A localisation of 0.1 Hz: tf2 interpolates between any two poses that it remembers."""
    for k in range(4):
        holder.add("map", "odom", NOW + round(k * period * SECOND), shift(k * period))
    assert place(holder, 2.5 * period, "odom", "map") == pytest.approx(2.5 * period)
    with pytest.raises(PoseNotYetError):
        place(holder, 3.01 * period, "odom", "map")
    with pytest.raises(PoseTooOldError):
        place(holder, -1, "odom", "map")


def test_what_is_older_than_ten_seconds_is_forgotten(holder):
    drive(holder, 12, rate=4)
    assert place(holder, 2.1) == pytest.approx(3.1)
    with pytest.raises(PoseTooOldError):
        place(holder, 1.9)


def test_kinds_of_errors(holder):
    drive(holder)
    with pytest.raises(PoseNotYetError, match="odom"):
        place(holder, 3.1)
    with pytest.raises(PoseTooOldError, match="odom"):
        place(holder, -0.1)
    with pytest.raises(NoTransformError, match="nowhere"):
        place(holder, 1, "nowhere")
    holder.set_static("mast", "lidar", shift(0))
    with pytest.raises(NoTransformError, match="lidar"):
        place(holder, 1, "lidar")


def test_a_jump_back_of_more_than_the_memory_is_followed_by_itself(holder):
    drive(holder, start=NOW + 100 * SECOND)
    drive(holder)
    assert place(holder, 2.5) == pytest.approx(3.5)


def test_a_short_jump_back_is_followed_when_it_is_told(holder):
    """The synchronizer tells; else poses of the earlier run would be mixed with those of this one."""
    drive(holder)
    holder.forget_after(NOW)
    with pytest.raises((PoseNotYetError, NoTransformError)):
        place(holder, 1.1)
    for k in range(1, 30):
        holder.add("odom", "base_link", NOW + k * SECOND // 20, shift(50))
    assert place(holder, 1.1) == pytest.approx(51)
    assert place(holder, 0, "cam", "base_link") == 1


def test_links_that_are_looked_up_stay_among_any_number_of_others():
    tree = TransformTree()
    drive(tree)
    assert place(tree, 1) == pytest.approx(2)
    for k in range(3 * TransformTree.LINKS_KEPT):
        tree.add("map", f"object_{k}", NOW, shift(k))
    for k in range(TransformTree.POSES_KEPT + 1000):
        tree.add("map", f"busy_{k % 500}", NOW + k, shift(k))
    for k in range(TransformTree.STATIC_LINKS_KEPT + 10):
        tree._set_static("map", f"thing_{k}", tree._static["cam"][1])
    assert place(tree, 1) == pytest.approx(2)
    assert len(tree._moving) <= TransformTree.LINKS_KEPT
    assert sum(map(len, tree._moving.values())) == tree._count <= TransformTree.POSES_KEPT + 10_000
    assert len(tree._static) == TransformTree.STATIC_LINKS_KEPT


def test_thousands_of_foreign_frames_cost_little():
    tree = TransformTree()
    drive(tree)
    place(tree, 1)
    poses = [shift(k) for k in range(3)]
    start = time.process_time()
    for k in range(30_000):
        tree.add("map", f"object_{k % 10_000}", NOW + k, poses[k % 3])
    assert time.process_time() - start < 3, "more than 0.1 ms each"
    start = time.process_time()
    for _ in range(100):
        place(tree, 1.013)
    assert time.process_time() - start < 1


def test_tf2_is_used_where_it_is_installed(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(transforms.importlib.util, "find_spec", lambda name: None if name == "tf2_py" else find(name))
    assert isinstance(open_transforms(), TransformTree)
    for name, module in stand_in().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(transforms.importlib.util, "find_spec", lambda name: object())
    assert isinstance(open_transforms(), Tf2Transforms)


FRAMES = ("map", "odom", "base_link", "mast", "cam", "lidar")


def outcome(lookup, source, target, stamp):
    try:
        return lookup(source, target, stamp)
    except (PoseNotYetError, PoseTooOldError, tf2_reference.ExtrapolationException):
        return "extrapolation"
    except (NoTransformError, tf2_reference.LookupException, tf2_reference.ConnectivityException):
        return "not connected"


@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_look_ups_follow_the_rules_of_tf2(seed):
    """Any parents, any order, loops, holes: 1,000 look-ups for each of ten seeds."""
    rng = random.Random(seed)
    tree, reference = TransformTree(), tf2_reference.Reference()
    static = set(rng.sample(FRAMES, rng.choice([0, 1, 2])))
    found = {"extrapolation": 0, "not connected": 0, "transform": 0}
    for _ in range(200):
        child = rng.choice(FRAMES)
        parent = FRAMES[max(0, FRAMES.index(child) - 1)] if rng.random() < 0.8 else rng.choice(FRAMES)
        if parent == child:
            continue
        pose = make_transform(Rotation.random(random_state=rng.randrange(2**32)).as_matrix(), np.random.randn(3) * 10)
        stamp = NOW + rng.choice([rng.randrange(-SECOND, 6 * SECOND), SECOND, 2 * SECOND])
        if child in static:
            tree.set_static(parent, child, pose)
            reference.set_static(parent, child, pose)
        else:
            tree.add(parent, child, stamp, pose)
            reference.add(parent, child, stamp, pose)
        for _ in range(5):
            source, target = rng.sample(FRAMES, 2)
            at = NOW + rng.choice([rng.randrange(-SECOND, 6 * SECOND), SECOND, 2 * SECOND])
            ours = outcome(tree.lookup, source, target, at)
            tf2 = outcome(reference.lookup, source, target, at)
            if isinstance(tf2, str):
                assert ours == tf2 if isinstance(ours, str) else pytest.fail(f"{tf2}, but we found {ours}")
                found[tf2] += 1
            else:
                assert not isinstance(ours, str), ours
                assert np.allclose(ours, tf2, atol=1e-9)
                found["transform"] += 1
    assert all(count > 20 for count in found.values()), found


def test_frames_that_are_not_connected_are_told_with_those_that_are_known(holder):
    with pytest.raises(NoTransformError, match="no tf has arrived"):
        holder.lookup("cam", "odom", NOW)
    drive(holder)
    with pytest.raises(NoTransformError, match="'lidar' to 'odom'.*child frames: cam, base_link; .*a parent: odom$"):
        holder.lookup("lidar", "odom", NOW)
