"""What the node says about a rig, from the frames that it makes."""

import dataclasses

import numpy as np
import pytest

from bev_perception.data.synthetic import synthetic_rig
from bev_perception.geometry import make_transform
from bev_perception.health import Health
from bev_perception.ros.rig_watch import RigWatch
from bev_perception.sensing.view_checks import BODY_FROM_OPTICAL
from bev_perception.types import CameraImage, Frame, View

BODY = make_transform(BODY_FROM_OPTICAL.T, np.zeros(3))


def frame(turned=(), without=()):
    """Return a frame of the synthetic rig, in which some cameras name a body frame and some are missing."""
    rig = synthetic_rig((160, 90))
    views = []
    for c in rig:
        pose = c.sensor2ego @ BODY if c.name in turned else c.sensor2ego
        image = CameraImage(c.name, 1, f"{c.name}_frame", "jpeg", b"")
        views.append(None if c.name in without else View(image, c.calibration, pose, np.eye(4)))
    return Frame(1, tuple(c.name for c in rig), tuple(views), np.eye(4))


def test_a_plausible_rig_is_passed_over_in_silence():
    health = Health()
    watch = RigWatch(health, "base_link")
    watch.look(frame())
    assert (watch.findings, watch.warning, watch.figures()) == ((), "", {})
    assert health.snapshot().notices == {}


@pytest.mark.parametrize("turned", [("cam_front",), ("cam_front", "cam_back")])
def test_a_body_frame_is_noticed_once_with_the_words_of_check(turned):
    health = Health()
    watch = RigWatch(health, "base_link")
    for _ in range(3):
        watch.look(frame(turned))
    assert health.snapshot().notices == {"implausible rig": len(turned)}
    assert watch.warning.startswith("implausible rig: cam_front: optical frame: cam_front_frame: z points")
    assert watch.warning.endswith(" (and 1 more)") == (len(turned) == 2)
    figures = watch.figures()
    assert set(figures) == {f"rig: {name}: optical frame" for name in turned}
    assert "this is a body frame" in figures["rig: cam_front: optical frame"]


def test_a_camera_that_comes_later_is_judged_when_it_comes():
    watch = RigWatch(Health(), "base_link")
    watch.look(frame(("cam_back",), without=("cam_back",)))
    assert watch.warning == ""
    watch.look(frame(("cam_back",)))
    assert "cam_back: optical frame" in watch.warning


def test_what_was_found_of_other_cameras_stays():
    watch = RigWatch(Health(), "base_link")
    watch.look(frame(("cam_back",), without=("cam_front",)))
    watch.look(frame(without=("cam_back",)))
    assert "cam_back: optical frame" in watch.warning


def test_a_base_frame_above_the_ground_is_no_fault():
    roof = frame()
    views = [
        dataclasses.replace(v, sensor2ego=make_transform(np.eye(3), (0, 0, -2)) @ v.sensor2ego) for v in roof.views
    ]
    watch = RigWatch(Health(), "base_link")
    watch.look(dataclasses.replace(roof, views=tuple(views)))
    assert watch.findings == ()
