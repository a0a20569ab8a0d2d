"""Motion of points against odometry that is right, backwards, turned, scaled or late."""

from dataclasses import replace

import numpy as np
import pytest

from bev_perception.geometry import invert_transform, make_transform, rotation_from_yaw
from bev_perception.rig.description import Rig
from bev_perception.rig.motion import judge_motion, motion_of_rays
from bev_perception.rig.recording import PoseTrack
from rig.kit import camera, levels, looking

STEP = 100_000_000  # ns


def pose_at(seconds):
    """Return base_link in the world on a winding road."""
    yaw = 0.4 * np.sin(1.1 * seconds) + 0.15 * np.sin(2.7 * seconds)
    return make_transform(rotation_from_yaw(yaw), np.array([8 * seconds, 2 * np.sin(1.1 * seconds), 0.0]))


def track(change=lambda pose: pose, late=0.0):
    times = np.arange(-1.0, 9.0, 0.02)
    return PoseTrack(np.round(times * 1e9).astype(np.int64), np.stack([change(pose_at(t - late)) for t in times]))


def rays_at(mount, seconds, points):
    sensor2global = pose_at(seconds) @ mount
    seen = (points - sensor2global[:3, 3]) @ sensor2global[:3, :3]
    return seen / np.linalg.norm(seen, axis=1, keepdims=True), seen[:, 2]


def findings(poses, mount=None, given=None):
    """Return levels by check of a camera at `mount` that tf puts at `given`."""
    mount = looking() if mount is None else mount
    seen_by = camera(pose=mount if given is None else given)
    rng = np.random.default_rng(0)
    seen = []
    for i in range(24):
        start = 0.3 * i
        stamps = (round(start * 1e9), round(start * 1e9) + STEP)
        there = pose_at(start)[:2, 3]
        heading = np.arctan2(*(pose_at(start) @ mount)[1::-1, 2])
        around = there + rng.uniform(4, 18, (150, 1)) * np.stack(
            [np.cos(a := heading + rng.uniform(-0.5, 0.5, 150)), np.sin(a)], 1
        )
        points = np.c_[around, np.where(rng.random(150) < 0.7, 0.0, rng.uniform(0.5, 5, 150))]
        (a, front), (b, behind) = (rays_at(mount, t / 1e9, points) for t in stamps)
        ahead = (front > 1) & (behind > 1)
        a, b = a[ahead] + rng.normal(0, 2e-4, (ahead.sum(), 3)), b[ahead] + rng.normal(0, 2e-4, (ahead.sum(), 3))
        motion = motion_of_rays(Rig((seen_by,)), seen_by, (a, b), stamps, poses)
        assert motion is not None
        seen.append(motion)
    return list(judge_motion(seen_by, seen, poses))


def test_right_odometry_agrees():
    found = findings(track())
    assert set(levels(found).values()) == {"OK"}
    assert not any("not judged" in f.figure or "cannot be told" in f.figure for f in found)


def test_odometry_that_is_the_inverse_turns_the_other_way():
    found = levels(findings(track(invert_transform)))
    assert found["cam: direction of motion"] == "FAIL"
    assert found["cam: turning and time offset"] == "FAIL"


def test_a_camera_that_is_turned_compared_with_tf():
    found = findings(track(), mount=looking(yaw=0), given=looking(yaw=20))
    (direction,) = (f for f in found if f.check == "direction of motion")
    assert direction.level == "WARN"
    assert "-20 degrees about the vertical" in direction.remedy


@pytest.mark.parametrize("factor", [3.6, 0.5])
def test_odometry_of_another_scale(factor):
    def scaled(pose):
        return make_transform(pose[:3, :3], pose[:3, 3] * factor)

    (scale,) = (f for f in findings(track(scaled)) if f.check == "scale of motion")
    assert scale.level == "FAIL"
    assert float(scale.figure.split("move ")[1].split()[0]) == pytest.approx(1 / factor, rel=0.25)


@pytest.mark.parametrize("late", [0.15, -0.3])
def test_the_time_offset_is_found(late):
    (turning,) = (f for f in findings(track(late=late)) if f.check == "turning and time offset")
    assert turning.level == ("WARN" if abs(late) < 0.2 else "FAIL")
    offset = float(turning.figure.split("and ")[1].split(" ms")[0]) / 1e3
    assert offset == pytest.approx(abs(late), abs=0.03)
    assert ("before" in turning.figure) == (late > 0)


def test_standing_is_not_judged():
    standing = PoseTrack(np.array([0, 10**10]), np.tile(np.eye(4), (2, 1, 1)))
    found = list(judge_motion(replace(camera()), [], standing))
    assert set(levels(found).values()) == {"OK"}
    assert all("not judged" in f.figure for f in found)
