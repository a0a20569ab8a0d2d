"""Pictures: boxes stand where geometry puts them, whatever cameras and boxes there are."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.data.drive import CAMERAS
from bev_perception.data.synthetic import synthetic_rig
from bev_perception.geometry import intrinsics_4x4, invert_transform, make_transform, project, rotation_from_yaw
from bev_perception.types import Boxes3D, Calibration, CameraImage, Frame, View
from bev_perception.visualization.canvas import CAPTION, SURROUND, bgr_colors
from bev_perception.visualization.pictures import (
    TILE_HEIGHT,
    TILE_WIDTH,
    draw_birds_eye,
    draw_frame,
    write_png,
)

SIZE = (400, 225)
RIG = {camera.name: camera for camera in synthetic_rig(SIZE)}
TRUCK = NUSCENES_CLASSES.index("truck")


def one_box(center=(15.0, 0.0, 1.0), size=(4.0, 2.0, 2.0), yaw=0.0, velocity=(0.0, 0.0), label=TRUCK):
    return Boxes3D(
        np.array([center]),
        np.array([size]),
        np.array([yaw]),
        np.array([velocity]),
        np.ones(1),
        np.array([label]),
        NUSCENES_CLASSES,
    )


def make_frame(cameras=CAMERAS, moved=None, missing=None, calibration=None):
    """A frame with black images.  moved: camera -> its own ego pose."""
    views = []
    for i, name in enumerate(cameras):
        rig = RIG.get(name, RIG[CAMERAS[i % 6]])
        pose = (moved or {}).get(name, np.eye(4))
        image = CameraImage(name, 1000, name, "jpeg", b"")
        views.append(View(image, calibration or rig.calibration, rig.sensor2ego, pose))
        if name in (missing or {}):
            views[-1] = None
    images = {name: np.zeros((SIZE[1], SIZE[0], 3), np.uint8) for name in cameras}
    return Frame(1000, tuple(cameras), tuple(views), np.eye(4), missing or {}), images


def tile(picture, name):
    row = next(r for r, names in enumerate(SURROUND) if name in names)
    column = SURROUND[row].index(name)
    y, x = row * TILE_HEIGHT, column * TILE_WIDTH
    return picture[y : y + TILE_HEIGHT, x : x + TILE_WIDTH]


def colored(picture, label=TRUCK):
    """Where the picture has the class's colour: rows, columns."""
    return np.nonzero((np.abs(picture.astype(int) - bgr_colors(NUSCENES_CLASSES)[label]) < 40).all(-1))


def box_middle(name, boxes, ego2global=None):
    """The box's centre in pixels of the tile."""
    camera = RIG[name]
    ego = np.eye(4) if ego2global is None else ego2global
    matrix = intrinsics_4x4(camera.calibration.intrinsics) @ invert_transform(ego @ camera.sensor2ego)
    return project(matrix, boxes.centers)[0][0] * TILE_WIDTH / SIZE[0]


def drawn_middle(picture, name):
    v, u = colored(tile(picture, name))
    return np.array([u.min() + u.max(), v.min() + v.max()]) / 2


def test_a_box_stands_in_the_cameras_that_see_it():
    boxes = one_box()
    picture = draw_frame(*make_frame(), boxes, "note")
    assert picture.shape == (2 * TILE_HEIGHT + CAPTION, 3 * TILE_WIDTH + 2 * TILE_HEIGHT, 3)
    np.testing.assert_allclose(drawn_middle(picture, "cam_front"), box_middle("cam_front", boxes), atol=6)
    for name in set(CAMERAS) - {"cam_front"}:
        assert not len(colored(tile(picture, name))[0])


@pytest.mark.parametrize(
    ("name", "center"),
    [
        ("cam_front_left", (8.0, 12.0, 1.0)),
        ("cam_front_right", (8.0, -12.0, 1.0)),
        ("cam_back", (-15.0, 0.0, 1.0)),
        ("cam_back_left", (-4.0, 15.0, 1.0)),
        ("cam_back_right", (-4.0, -15.0, 1.0)),
    ],
)
def test_every_camera_has_its_place(name, center):
    picture = draw_frame(*make_frame(), one_box(center, (1.0, 1.0, 1.0)))
    np.testing.assert_allclose(drawn_middle(picture, name), box_middle(name, one_box(center)), atol=5)


def test_each_camera_uses_the_ego_pose_of_its_own_stamp():
    boxes = one_box(size=(0.5, 1.0, 1.0))
    pose = make_transform(rotation_from_yaw(0.15), np.array([1.0, 0.5, 0.0]))
    picture = draw_frame(*make_frame(moved={"cam_front": pose}), boxes)
    still, moved = box_middle("cam_front", boxes), box_middle("cam_front", boxes, pose)
    assert np.abs(still - moved).max() > 50
    np.testing.assert_allclose(drawn_middle(picture, "cam_front"), moved, atol=6)


def test_a_box_around_the_camera_is_cut_at_the_near_plane():
    picture = draw_frame(*make_frame(), one_box((2.0, 0.0, 1.0), (12.0, 2.5, 2.5)))
    v, u = colored(tile(picture, "cam_front"))
    assert len(u)
    # lines that would run through the camera's back must not cross the middle of the picture
    assert not ((np.abs(u - TILE_WIDTH / 2) < 20) & (v < 60)).any()


def test_a_missing_camera_says_why():
    frame, images = make_frame(missing={"cam_front": "no tf"})
    without, _ = make_frame(missing={"cam_front": ""})
    a, b = (draw_frame(f, images, one_box()) for f in (frame, without))
    assert not len(colored(tile(a, "cam_front"))[0])
    assert (tile(a, "cam_front") != tile(b, "cam_front")).any()


def test_an_image_of_another_size_than_its_calibration_gets_no_boxes():
    frame, images = make_frame()
    images["cam_front"] = np.zeros((10, 10, 3), np.uint8)
    assert not len(colored(tile(draw_frame(frame, images, one_box()), "cam_front"))[0])


@pytest.mark.parametrize("names", [("one",), ("a", "b", "c"), tuple("abcdefg"), CAMERAS[:4]])
def test_any_number_of_cameras(names):
    picture = draw_frame(*make_frame(names), one_box())
    columns = -(-len(names) // 2)
    assert picture.shape[1] == columns * TILE_WIDTH + 2 * TILE_HEIGHT
    assert len(colored(picture[:TILE_HEIGHT, :TILE_WIDTH])[0])


def test_a_distorted_image_is_straightened():
    """A point painted where the lens puts it appears where the ideal camera has it, under the box's centre."""
    ideal = RIG["cam_front"].calibration
    d = np.array([-0.3, 0.1, 0.0, 0.0, 0.0])
    lens = Calibration(ideal.intrinsics, *SIZE, "plumb_bob", tuple(d))
    frame, images = make_frame(calibration=lens)
    ray = np.array([[[0.45, -0.12, 1.0]]])
    seen = cv2.projectPoints(ray, np.zeros(3), np.zeros(3), ideal.intrinsics, d)[0].reshape(2)
    cv2.circle(images["cam_front"], tuple(np.round(seen).astype(int).tolist()), 3, (255, 255, 255), -1)
    nothing = one_box().select(np.zeros(1, bool))
    shown = tile(draw_frame(frame, images, nothing), "cam_front")
    v, u = np.nonzero(shown[40:].min(-1) > 150)
    expected = (ideal.intrinsics @ ray.reshape(3))[:2] * TILE_WIDTH / SIZE[0]
    np.testing.assert_allclose((u.mean(), v.mean() + 40), expected, atol=3)
    assert np.abs(seen * TILE_WIDTH / SIZE[0] - expected).max() > 8


@pytest.mark.parametrize(
    ("center", "expected"), [((30, 0), (0, -1)), ((-30, 0), (0, 1)), ((0, 30), (-1, 0)), ((0, -30), (1, 0))]
)
def test_from_above_forward_is_up_and_left_is_left(center, expected):
    picture = draw_birds_eye(one_box((*center, 0.0)), 720)
    v, u = colored(picture[:, 150:])  # the legend is at the left
    middle = np.array([u.mean() + 150, v.mean()]) - 360
    np.testing.assert_allclose(middle / (30 * (360 - 12) / 50), expected, atol=0.06)


def test_from_above_a_fast_box_has_an_arrow_ahead_of_it():
    still, fast = (draw_birds_eye(one_box((20.0, -10, 0), velocity=(v, 0.0)), 720) for v in (0.0, 10.0))
    v, u = np.nonzero((still != fast).any(-1))
    scale = (360 - 12) / 50
    assert v.min() == pytest.approx(360 - scale * 32, abs=3)
    assert v.max() == pytest.approx(360 - scale * 22, abs=3)
    assert u.mean() == pytest.approx(360 + scale * 10, abs=2)


def white(picture):
    """Where the picture is white, below the cameras' names: rows, columns."""
    v, u = np.nonzero((picture[30:] > 180).all(-1))
    return v + 30, u


def test_truth_stands_in_the_cameras_in_white_dashes():
    nothing, truth = one_box().select(np.zeros(1, bool)), one_box()
    frame, images = make_frame()
    dashed, solid = draw_frame(frame, images, nothing, "", truth), draw_frame(frame, images, truth)
    v, u = white(tile(dashed, "cam_front"))
    np.testing.assert_allclose(
        [(u.min() + u.max()) / 2, (v.min() + v.max()) / 2], box_middle("cam_front", truth), atol=6
    )
    assert len(u) < 0.6 * len(colored(tile(solid, "cam_front"))[0])  # thin, and with gaps
    assert not len(colored(dashed[:, : 3 * TILE_WIDTH])[0])
    assert not len(white(tile(dashed, "cam_back"))[0]) and not len(white(tile(solid, "cam_front"))[0])


def test_truth_moves_with_each_cameras_own_pose():
    pose = make_transform(rotation_from_yaw(0.15), np.array([1.0, 0.5, 0.0]))
    truth = one_box(size=(0.5, 1.0, 1.0))
    frame, images = make_frame(moved={"cam_front": pose})
    v, u = white(tile(draw_frame(frame, images, truth.select(np.zeros(1, bool)), "", truth), "cam_front"))
    middle = [(u.min() + u.max()) / 2, (v.min() + v.max()) / 2]
    np.testing.assert_allclose(middle, box_middle("cam_front", truth, pose), atol=6)


def test_a_prediction_is_drawn_over_the_truth():
    boxes = one_box()
    frame, images = make_frame()
    alone, both = draw_frame(frame, images, boxes), draw_frame(frame, images, boxes, "", boxes)
    mine = set(zip(*colored(tile(alone, "cam_front")), strict=True))
    assert len(mine) > 100 and mine <= set(zip(*colored(tile(both, "cam_front")), strict=True))


def test_from_above_truth_has_dashes_and_the_legend_says_so():
    boxes, truth = one_box((20.0, -10.0, 0.0), (8.0, 3.0, 2.0)), one_box((-20.0, 15.0, 0.0), (8.0, 3.0, 2.0))
    without, within = draw_birds_eye(boxes, 720), draw_birds_eye(boxes, 720, truth)
    v, u = np.nonzero((without != within).any(-1))
    scale = (360 - 12) / 50
    near = np.hypot(u - (360 - 15 * scale), v - (360 + 20 * scale)) < 6 * scale
    np.testing.assert_allclose(
        [np.ptp(u[near]), np.ptp(v[near])], [3 * scale, 8 * scale], atol=3
    )  # the box: 3 m across, 8 m along
    assert (np.ptp(within[v[near], u[near]], axis=1) < 6).all()  # white, and shades of it at the edges
    legend = (v[~near] < 45) | (v[~near] > 720 - 12 - 17 * 10)
    assert legend.all() and (v[~near] < 45).any()


wild = st.floats(-200, 200)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(wild, wild, wild, st.floats(0.01, 30), st.floats(-7, 7), wild, st.integers(0, 9)), max_size=6)
)
def test_any_boxes_can_be_drawn(rows):
    values = np.array(rows, float).reshape(-1, 7)
    boxes = Boxes3D(
        values[:, :3],
        np.repeat(values[:, 3:4], 3, 1),
        values[:, 4],
        values[:, 4:6],
        np.ones(len(values)),
        values[:, 6].astype(int),
        NUSCENES_CLASSES,
    )
    draw_frame(*make_frame(CAMERAS[:2]), boxes, "any")


def test_png(tmp_path):
    picture = draw_birds_eye(one_box(), 200)
    write_png(tmp_path / "p.png", picture)
    assert np.array_equal(cv2.imread(str(tmp_path / "p.png")), picture)
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]
