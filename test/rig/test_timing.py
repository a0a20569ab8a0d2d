"""Stamps and arrivals with planted faults."""

import numpy as np
import pytest

from bev_perception.rig.description import Rig, RigCamera
from bev_perception.rig.recording import PoseTrack, Recording, Times
from bev_perception.rig.timing import check_tf_timeout, check_timing
from rig.kit import bad

SECOND = 1_000_000_000


def at(rate=10.0, seconds=4.0, offset=0.0, late=0.01):
    stamps = (np.arange(0, seconds, 1 / rate) + offset + 1000) * 1e9
    return Times(stamps.astype(np.int64), (stamps + late * 1e9).astype(np.int64))


def recording(poses=None, **images):
    rig = Rig(tuple(RigCamera(name) for name in images))
    links = {"odom -> base_link": poses or at(50, 5.0, -0.5, 0.0)}
    track = PoseTrack(
        links["odom -> base_link"].stamps, np.tile(np.eye(4), (len(links["odom -> base_link"].stamps), 1, 1))
    )
    return Recording(rig, track, images, links)


def check(made):
    return list(check_timing(made, 0.05, 0.2))


def test_regular_topics_are_ok():
    assert bad(check(recording(a=at(), b=at(offset=0.02)))) == []


def shuffled(times):
    stamps = times.stamps.copy()
    stamps[[4, 5]] = stamps[[5, 4]]
    return Times(stamps, times.logged)


@pytest.mark.parametrize(
    ("times", "checks"),
    [
        (shuffled(at()), ["order"]),
        (Times(at().stamps * 0, at().logged), ["stamps"]),
        (at(late=0.6), ["lateness"]),
        (at(late=-0.5), ["lateness"]),
        (at(rate=5.0), ["cameras' rates", "taken together"]),
        (at(offset=5.0), ["taken together"]),
        (Times(np.zeros(0, np.int64), np.zeros(0, np.int64)), ["images"]),
    ],
)
def test_a_fault_of_one_camera_is_named(times, checks):
    found = [f for f in check(recording(a=at(), b=times)) if f.check != "tf_timeout"]
    assert bad(found) == checks


def test_a_gap_and_jitter():
    times = at()
    holed = Times(np.delete(times.stamps, slice(10, 25)), np.delete(times.logged, slice(10, 25)))
    assert "rate" in bad(check(recording(a=at(), b=holed)))
    rng = np.random.default_rng(0)
    shaken = Times(times.stamps + rng.integers(0, 95_000_000, len(times.stamps)), times.logged + 95_000_000)
    assert "rate" in bad(check(recording(a=at(), b=shaken)))


@pytest.mark.parametrize("lag", [0.35, 1.0])
def test_late_odometry_is_told_with_the_tf_timeout_that_it_needs(lag):
    made = recording(at(10, 6.0, -0.5, lag), a=at(late=0.0), b=at(offset=0.01, late=0.0))
    (finding,) = check_tf_timeout(made, 0.2)
    assert finding.level == "FAIL"
    needed = float(finding.remedy.split("set tf_timeout to ")[1].split(",")[0])
    # a pose comes up to one of its periods and the lag after the image, counted in image stamps of 10 Hz
    assert lag <= needed <= lag + 0.25
    assert next(iter(check_tf_timeout(made, needed))).level == "OK"


def test_without_odometry():
    made = Recording(Rig((RigCamera("a"),)), PoseTrack(np.zeros(0), np.zeros((0, 4, 4))), {"a": at()}, {})
    assert bad(check(made)) == ["odometry"]
    (finding,) = check_tf_timeout(recording(at(10, 1.0, -9.0), a=at()), 0.2)
    assert finding.level == "FAIL"
