"""Ids and trails: they stand beside their boxes, in the colours of their tracks."""

import dataclasses

import numpy as np
import pytest

from bev_perception.classes import track_color
from bev_perception.geometry import make_transform, rotation_from_yaw
from bev_perception.types import NO_TRACK
from bev_perception.visualization.pictures import box_colors, draw_birds_eye, draw_frame

from .test_pictures import TILE_WIDTH, box_middle, make_frame, one_box, tile

SCALE = (360 - 12) / 50  # pixels per metre, from above


def tracked(boxes, *ids):
    return dataclasses.replace(boxes, track_ids=np.array(ids))


def changed(a, b):
    """Rows and columns that differ."""
    return np.nonzero((a != b).any(-1))


def test_an_id_stands_over_its_box_in_the_cameras_that_see_it():
    boxes = one_box((15.0, 0.0, 1.0), (1.0, 1.0, 1.0))
    without, within = draw_frame(*make_frame(), boxes), draw_frame(*make_frame(), tracked(boxes, 17))
    v, u = changed(tile(without, "cam_front"), tile(within, "cam_front"))
    x, y = box_middle("cam_front", boxes)
    assert len(u) > 50 and 0 <= u.min() - x + 4 < 8 and u.max() < x + 60  # it begins at the middle
    half = 0.5 * abs(box_middle("cam_front", one_box((15.0, 0.0, 2.0)))[1] - y)
    assert v.max() < y - half and v.min() > y - half - 40
    assert not len(changed(tile(without, "cam_back"), tile(within, "cam_back"))[0])


def test_an_id_has_the_colour_of_its_track():
    boxes = one_box((15.0, 0.0, 1.0))
    shown = tile(draw_frame(*make_frame(), tracked(boxes, 17)), "cam_front")
    other = tile(draw_frame(*make_frame(), tracked(boxes, 18)), "cam_front")
    for picture, track, present in ((shown, 17, True), (other, 17, False)):
        near = (np.abs(picture.astype(int) - track_color(track)[::-1]) < 30).all(-1)
        assert near.any() == present


@pytest.mark.parametrize("boxes", [one_box(), tracked(one_box(), NO_TRACK)])
def test_without_a_track_there_is_no_text(boxes):
    plain = draw_frame(*make_frame(), dataclasses.replace(boxes, track_ids=None))
    assert np.array_equal(draw_frame(*make_frame(), boxes), plain)


def test_a_score_stands_right_of_the_id_in_the_colour_of_the_class():
    boxes = tracked(one_box((15.0, 0.0, 1.0), (1.0, 1.0, 1.0)), 17)
    without, within = (tile(draw_frame(*make_frame(), boxes, scores=s), "cam_front") for s in (False, True))
    v, u = changed(without, within)
    x, _ = box_middle("cam_front", boxes)
    assert len(u) > 50 and u.min() > x + 20
    assert (np.abs(within[v, u].astype(int) - box_colors(boxes)[0]) < 30).all(-1).any()
    low = dataclasses.replace(boxes, scores=np.array([0.17]))
    assert len(changed(within, tile(draw_frame(*make_frame(), low, scores=True), "cam_front"))[0]) > 10


def test_a_label_does_not_cover_that_of_a_nearer_box():
    near, behind = one_box((15.0, 0.0, 1.0)), one_box((16.0, 0.0, 1.0))
    both = dataclasses.replace(
        near,
        **{
            name: np.concatenate([getattr(near, name), getattr(behind, name)])
            for name in ("centers", "sizes", "yaws", "velocities", "scores", "labels")
        },
    )
    plain = tile(draw_frame(*make_frame(), dataclasses.replace(both, track_ids=None)), "cam_front")
    one, two = (tile(draw_frame(*make_frame(), tracked(both, *ids)), "cam_front") for ids in ((5, -1), (5, 7)))
    assert np.array_equal(one, two) and len(changed(plain, one)[0]) > 20


def test_from_above_a_trail_leads_to_its_box():
    boxes = tracked(one_box((20.0, -10.0, 0.0)), 5)
    way = np.array([[8.0, -10.0, 0.0], [14.0, -10.0, 0.0], [20.0, -10.0, 0.0]])
    without, within = draw_birds_eye(boxes, 720), draw_birds_eye(boxes, 720, trails={5: way})
    v, u = changed(without, within)
    assert u.mean() == pytest.approx(360 + 10 * SCALE, abs=1.5) and np.ptp(u) <= 4
    assert v.max() == pytest.approx(360 - 8 * SCALE, abs=2)
    colors = within[v, u].astype(int)
    assert (np.abs(colors - track_color(5)[::-1]) < 60).all(-1).any()


def test_from_above_a_trail_stays_in_the_world_while_the_car_moves():
    frame, images = make_frame()
    moved = dataclasses.replace(frame, ego2global=make_transform(rotation_from_yaw(0.4), np.array([3.0, 1.0, 0.0])))
    way = np.array([[12.0, 5.0, 0.0], [20.0, 5.0, 0.0]])
    nothing = one_box().select(np.zeros(1, bool))
    for ego in (frame, moved):
        without, within = (draw_frame(ego, images, nothing, trails=trails) for trails in ({}, {9: way}))
        v, u = changed(without, within)
        ends = np.stack([v, u - 3 * TILE_WIDTH], 1)[[v.argmax(), v.argmin()]]
        local = (way[:, :2] - ego.ego2global[:2, 3]) @ ego.ego2global[:2, :2]
        np.testing.assert_allclose(ends, 360 - SCALE * local, atol=2.5)
