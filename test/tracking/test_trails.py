"""Trails: the last seconds of every track, in a frame that does not move."""

import numpy as np

from bev_perception.geometry import invert_transform, make_transform, rotation_from_yaw, transform_points
from bev_perception.tracking.trails import TRAIL, Trails
from bev_perception.types import NO_TRACK, Boxes3D

SECOND = 10**9


def boxes_at(centers, ids):
    n = len(centers)
    return Boxes3D(
        np.array(centers, float).reshape(n, 3),
        np.ones((n, 3)),
        np.zeros(n),
        np.zeros((n, 2)),
        np.ones(n),
        np.zeros(n, np.int64),
        ("car",),
        None if ids is None else np.array(ids, np.int64),
    )


def test_a_trail_is_the_way_in_the_global_frame():
    trails = Trails()
    way = np.array([[5, 0, 1], [6, 0, 1], [7, 1, 1.0]])
    for k, place in enumerate(way):
        ego2global = make_transform(rotation_from_yaw(0.3 * k), np.array([2.0 * k, 0, 0]))
        in_ego = transform_points(invert_transform(ego2global), place[None])
        trails.add(k * SECOND, boxes_at(in_ego, [8]), ego2global)
    assert list(trails.lines()) == [8]
    np.testing.assert_allclose(trails.lines()[8], way, atol=1e-12)


def test_one_place_makes_no_line_and_no_track_leaves_none():
    trails = Trails()
    trails.add(0, boxes_at([[0, 0, 0], [1, 0, 0]], [1, NO_TRACK]), np.eye(4))
    trails.add(SECOND, boxes_at([[0, 0, 0], [1, 0, 0]], [2, NO_TRACK]), np.eye(4))
    trails.add(2 * SECOND, boxes_at([[0, 0, 0]], None), np.eye(4))
    assert trails.lines() == {}


def test_a_trail_fades_from_its_tail_and_is_forgotten():
    """12 Hz for ten seconds, then nothing: there is never more than the last three seconds."""
    trails = Trails()
    for k in range(120):
        trails.add(k * SECOND // 12, boxes_at([[k, 0, 0]], [1]), np.eye(4))
        assert len(trails.lines().get(1, ())) <= 12 * TRAIL + 1
    assert trails.lines()[1][-1, 0] == 119 and len(trails.lines()[1]) == 12 * TRAIL + 1
    lengths = []
    for k in range(120, 160):
        trails.add(k * SECOND // 12, boxes_at([], []), np.eye(4))
        lengths.append(len(trails.lines().get(1, ())))
    assert lengths[:2] == [36, 35] and lengths[-3:] == [0, 0, 0] and (np.diff(lengths) <= 0).all()


def test_trails_end_when_tracking_is_switched_off():
    trails = Trails()
    for k in range(3):
        trails.add(k * SECOND, boxes_at([[k, 0, 0]], [1]), np.eye(4))
    assert 1 in trails.lines()
    trails.add(20 * SECOND, boxes_at([[0, 0, 0]], None), np.eye(4))
    assert trails.lines() == {}


def test_clear():
    trails = Trails()
    for k in range(2):
        trails.add(k, boxes_at([[k, 0, 0]], [1]), np.eye(4))
    trails.clear()
    trails.add(0, boxes_at([[0, 0, 0]], [1]), np.eye(4))
    assert trails.lines() == {}
