import dataclasses

import numpy as np
import pytest

from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.pipeline.continuity import Continuity
from bev_perception.types import Frame

SECOND = 1_000_000_000
LIMITS = (80.0, 4.0)  # m/s, rad/s


def at(seconds, x=0.0, yaw=0.0):
    pose = make_transform(rotation_from_yaw(yaw), np.array([x, 0.0, 0.0]))
    return Frame(round(seconds * SECOND), ("cam",), (None,), pose)


@pytest.mark.parametrize(
    "frame, cause",
    [
        (at(1.5), None),
        (at(3.0), None),
        (at(3.01), "gap"),
        (at(1.0), "time ran backwards"),
        (at(0.5), "time ran backwards"),
        (at(1.5, x=39.9), None),
        (at(1.5, x=40.1), "pose jump"),
        (at(1.5, yaw=1.9), None),
        (at(1.5, yaw=-2.1), "pose jump"),
        (at(1.001, x=3.9), None),  # a speed is never taken over less than 0.05 s
        (at(1.001, x=4.1), "pose jump"),
    ],
)
def test_what_breaks(frame, cause):
    continuity = Continuity(max_gap=2.0)
    assert continuity.break_before(frame, *LIMITS) is None  # nothing comes before it
    continuity.passed(at(1.0), remembered=True)
    broken = continuity.break_before(frame, *LIMITS)
    assert (None if broken is None else broken[0]) == cause


def test_one_frame_every_interval_is_remembered():
    continuity = Continuity(max_gap=2.0)
    remembered = []
    for k in range(24):  # 2 s at 12 Hz, with stamps that jitter by 5 ms
        frame = at(k / 12 + (-1) ** k * 0.005)
        due = continuity.is_due(frame.stamp, 0.25)
        continuity.passed(frame, due)
        remembered += [k] if due else []
    assert remembered == list(range(0, 24, 3))


def test_after_a_restart_the_next_frame_is_remembered():
    continuity = Continuity(max_gap=2.0)
    continuity.passed(at(1.0), remembered=True)
    assert not continuity.is_due(at(1.1).stamp, 0.25)
    continuity.restart()
    assert continuity.is_due(at(1.1).stamp, 0.25)
    assert continuity.break_before(dataclasses.replace(at(0.9)), *LIMITS) is not None  # where it was is not forgotten
