"""The synthetic drive: its pictures, calibrations, poses and boxes must tell one story."""

import cv2
import numpy as np
import pytest

from bev_perception.data.drive import CAMERAS, DriveImage, DrivePose
from bev_perception.data.rendering import Painter
from bev_perception.data.synthetic import START, World, synthetic_drive, synthetic_rig
from bev_perception.geometry import intrinsics_4x4, invert_transform, project, transform_points

SECOND = 1_000_000_000
RIG = {camera.name: camera for camera in synthetic_rig()}
MOMENTS = [START + round(t * SECOND) for t in (0.0, 1.3, 2.9, 7.7)]


@pytest.fixture(scope="module")
def world():
    return World(0)


@pytest.fixture(scope="module")
def paint(world):
    scenery = world.scenery()
    painters = {name: Painter(camera) for name, camera in RIG.items()}

    def picture(name, stamp):
        return painters[name].paint(scenery, world.ego2global(stamp), world.boxes(stamp), world.colors)

    return picture


def global2image(world, name, stamp):
    camera = RIG[name]
    global2camera = invert_transform(world.ego2global(stamp) @ camera.sensor2ego)
    return intrinsics_4x4(camera.calibration.intrinsics) @ global2camera


def eye_of(world, name, stamp):
    return (world.ego2global(stamp) @ RIG[name].sensor2ego)[:3, 3]


def hidden(boxes, eye, targets, skip=()):
    """Whether the line of sight from eye to each target [n, 3] passes through a box: the slab method."""
    result = np.zeros(len(targets), bool)
    for i in set(range(len(boxes))) - set(skip):
        c, s = np.cos(-boxes.yaws[i]), np.sin(-boxes.yaws[i])
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        start = turn @ (eye - boxes.centers[i])
        way = (targets - eye) @ turn.T
        half = boxes.sizes[i] / 2 * 1.15
        with np.errstate(divide="ignore"):
            t = np.stack([(-half - start) / way, (half - start) / way])
        enter, leave = t.min(0).max(1), t.max(0).min(1)
        result |= (enter < np.minimum(leave, 1)) & (leave > 0)
    return result


@pytest.mark.parametrize("stamp", MOMENTS)
def test_a_boxs_projected_centre_shows_its_colour(world, paint, stamp):
    boxes, checked = world.boxes(stamp), 0
    for name in CAMERAS:
        picture, eye = paint(name, stamp), eye_of(world, name, stamp)
        pixels, depths = project(global2image(world, name, stamp), boxes.centers)
        for i in np.flatnonzero((depths > 2) & (depths < 40)):
            u, v = np.round(pixels[i]).astype(int)
            inside = 0 <= u < 1600 and 0 <= v < 900
            if not inside or hidden(boxes, eye, boxes.centers[i : i + 1], skip=(i,))[0]:
                continue
            seen, color = picture[v, u].astype(float), world.colors[i].astype(float)
            cosine = seen @ color / np.linalg.norm(seen) / np.linalg.norm(color)
            assert cosine > 0.998, (name, i, seen, color)
            checked += 1
    assert checked >= 5


def test_the_ground_stands_still_while_the_car_moves(world, paint):
    """The same points of the world look the same from two places, but not if the motion is left out."""
    first, second = START + SECOND, START + round(1.35 * SECOND)
    rng = np.random.default_rng(1)
    local = np.c_[rng.uniform(8, 22, 3000), rng.uniform(-5, 5, 3000), np.zeros(3000)]
    points = transform_points(world.ego2global(first), local)
    grey = {s: cv2.cvtColor(paint("cam_front", s), cv2.COLOR_BGR2GRAY) for s in (first, second)}

    def look(picture_at, pose_at):
        pixels, depth = project(global2image(world, "cam_front", pose_at), points)
        u, v = np.round(pixels).astype(int).T
        seen = (depth > 1) & (u >= 0) & (u < 1600) & (v >= 0) & (v < 900)
        seen &= ~hidden(world.boxes(picture_at), eye_of(world, "cam_front", picture_at), points)
        values = np.zeros(len(points))
        values[seen] = grey[picture_at][v[seen], u[seen]]
        return values, seen

    def likeness(a, b):
        both = a[1] & b[1]
        assert both.sum() > 500
        return np.corrcoef(a[0][both], b[0][both])[0, 1]

    here = look(first, first)
    assert likeness(here, look(second, second)) > 0.9
    assert likeness(here, look(second, first)) < 0.7


def test_velocities_are_the_motion_of_the_centres(world):
    a, b = world.boxes(START), world.boxes(START + 10_000_000)
    np.testing.assert_allclose((b.centers - a.centers)[:, :2] / 0.01, a.velocities, atol=0.02)
    assert np.hypot(*a.velocities.T).max() > 5
    moving = np.hypot(*a.velocities.T) > 0
    headings = np.arctan2(a.velocities[moving, 1], a.velocities[moving, 0])
    np.testing.assert_allclose(np.cos(headings - a.yaws[moving]), 1)


def test_boxes_in_ego_are_the_same_boxes(world):
    for stamp in MOMENTS:
        local, everything = world.boxes_in_ego(stamp, 30.0), world.boxes(stamp)
        assert 3 < len(local) < len(everything)
        assert np.hypot(*local.centers[:, :2].T).max() < 30
        back = transform_points(world.ego2global(stamp), local.centers)
        distance = np.linalg.norm(back[:, None] - everything.centers[None], axis=2)
        assert distance.min(1).max() < 1e-6
        pairs = distance.argmin(1)
        # a heading as a vector turns like any other vector
        turned = world.ego2global(stamp)[:2, :2] @ np.stack([np.cos(local.yaws), np.sin(local.yaws)])
        truth = np.stack([np.cos(everything.yaws), np.sin(everything.yaws)])[:, pairs]
        np.testing.assert_allclose(turned, truth, atol=1e-9)
        np.testing.assert_allclose(
            world.ego2global(stamp)[:2, :2] @ local.velocities.T, everything.velocities[pairs].T, atol=1e-9
        )


def test_nobody_is_run_over(world):
    for t in np.arange(0, 80, 0.25):
        centers = world.boxes_in_ego(START + round(t * SECOND)).centers
        assert (np.abs(centers[:, :2]) > (4.0, 1.7)).any(1).all()


def test_order_offsets_and_rate():
    events = list(synthetic_drive(0.5, image_size=(160, 90)))
    assert len(events) == len(synthetic_drive(0.5, image_size=(160, 90))) == 72
    images = [event for event in events if isinstance(event, DriveImage)]
    first = images[:6]
    assert [i.camera.removeprefix("cam_") for i in first] == [
        "front_left",
        "front",
        "front_right",
        "back_right",
        "back",
        "back_left",
    ]
    assert first[-1].stamp - first[0].stamp == 43_000_000
    assert images[6].stamp - images[0].stamp == pytest.approx(SECOND / 12, abs=1)
    for pose, image in zip(events[::2], events[1::2], strict=True):
        assert isinstance(pose, DrivePose)
        assert pose.stamp == image.stamp


def test_the_seed_decides_everything():
    def content(seed):
        return [e.jpeg for e in synthetic_drive(0.1, seed, (160, 90)) if isinstance(e, DriveImage)]

    assert content(0) == content(0)
    assert content(0) != content(1)
    drive = synthetic_drive(0.1, 0, (160, 90))
    assert [e.jpeg for e in drive if isinstance(e, DriveImage)] == content(0)  # and a second walk changes nothing


def test_image_size_scales_the_camera(world, paint):
    small = {camera.name: camera for camera in synthetic_rig((800, 450))}["cam_back"]
    np.testing.assert_allclose(small.calibration.intrinsics[:2], RIG["cam_back"].calibration.intrinsics[:2] / 2)
    picture = Painter(small).paint(world.scenery(), world.ego2global(START), world.boxes(START), world.colors)
    assert picture.shape == (450, 800, 3)
    large = cv2.resize(paint("cam_back", START), (800, 450), interpolation=cv2.INTER_AREA)
    assert np.abs(large.astype(float) - picture).mean() < 4
