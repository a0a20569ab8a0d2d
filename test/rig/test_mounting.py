"""Faults planted in the mounting are named; nothing else is."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.geometry import make_transform
from bev_perception.rig.findings import FAIL, WARN
from bev_perception.rig.mounting import check_coverage, check_mounting, seen_headings
from bev_perception.sensing.view_checks import BODY_FROM_OPTICAL
from rig.kit import bad, calibration, camera, levels, looking, nuscenes_like, one


def test_the_rig_of_the_training_is_plausible():
    assert bad(check_mounting(nuscenes_like())) == []


@pytest.mark.parametrize("yaw", [-150, -60, 0, 90])
@pytest.mark.parametrize("pitch", [0, 20])
def test_a_body_frame_is_no_optical_frame(yaw, pitch):
    optical = looking(yaw, pitch)
    body = optical @ make_transform(BODY_FROM_OPTICAL.T, np.zeros(3))
    rig = one(camera(pose=body, frame="cam_link"), frames={"cam_optical_frame": optical, "other": looking(yaw + 9)})
    (finding,) = (f for f in check_mounting(rig) if f.check == "optical frame")
    assert finding.level == FAIL
    assert "tf has cam_optical_frame" in finding.remedy
    assert levels(check_mounting(one(camera(pose=optical))))["cam: optical frame"] == "OK"


@pytest.mark.parametrize(
    ("pose", "check", "level"),
    [
        (looking(pitch=35), "direction", WARN),
        (looking(pitch=80), "direction", FAIL),
        (looking(pitch=-40), "direction", WARN),
        (looking(roll=20), "upright", WARN),
        (looking(roll=180), "upright", FAIL),
        (looking(roll=-90), "upright", FAIL),
        (looking(at=(1, 0, 0.1)), "height", WARN),
        (looking(at=(1, 0, -1.0)), "height", FAIL),
        (looking(at=(12, 0, 1.5)), "place", WARN),
        (looking(at=(1500, 0, 1.5)), "place", FAIL),
    ],
)
def test_a_pose_that_no_camera_has(pose, check, level):
    found = levels(f for f in check_mounting(one(camera(pose=pose))) if f.check != "coverage")
    assert found.pop(f"cam: {check}") == level
    assert set(found.values()) == {"OK"}


def test_the_height_of_base_link_is_added():
    low = camera(pose=looking(at=(0.3, 0, 0.05)))
    assert "height" in bad(check_mounting(one(low)))
    assert "height" not in bad(check_mounting(one(low, base_height=0.9)))


def test_two_cameras_in_one_place():
    a, b = camera("a", frame="front"), camera("b", frame="front")
    (finding,) = (f for f in check_mounting(one(a, b)) if f.check == "two in one place")
    assert (finding.about, finding.level) == ("a + b", FAIL)
    assert "both name the frame front" in finding.remedy
    stereo = camera("b", pose=looking(at=(1.5, 0.12, 1.5)))
    assert "two in one place" not in bad(check_mounting(one(a, stereo)))


def test_a_camera_that_tf_does_not_know():
    (finding,) = (f for f in check_mounting(one(replace(camera(), sensor2ego=None))) if f.about == "cam")
    assert (finding.check, finding.level) == ("mounting", FAIL)


def test_coverage_names_the_blind_directions():
    assert seen_headings(nuscenes_like()).all()
    front = check_coverage(one(camera(lens=calibration(focal=400.0))))  # 90 degrees ahead, from 1.5 m ahead
    assert front.level == WARN
    assert "24% of the circle" in front.figure or "25% of the circle" in front.figure
    first, last = map(int, re.findall(r"[+-]\d+", front.figure))
    assert (first, last) == (pytest.approx(43, abs=1), pytest.approx(-43, abs=1))


@settings(deadline=None, max_examples=40)
@given(pose=st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=6), height=st.floats(-10, 10))
def test_any_pose_gets_findings(pose, height):
    yaw, pitch, roll, *at = pose
    findings = list(check_mounting(one(camera(pose=looking(yaw, pitch, roll, at)), base_height=height)))
    assert {"optical frame", "height", "place", "coverage"} <= {f.check for f in findings}
