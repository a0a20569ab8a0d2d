"""Columns of voxels as obstacles, free or unknown."""

import numpy as np
import pytest

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.synthetic import synthetic_rig
from bev_perception.geometry import invert_transform, make_transform, rotation_from_yaw, transform_points
from bev_perception.results.costmap import FREE, OBSTACLE, UNKNOWN, CostmapSettings, camera_rays, costmap, ground_voxels
from bev_perception.types import OCC3D_GRID, Calibration, CameraImage, Frame, Occupancy, View, VoxelGrid

ROAD, CAR, TERRAIN, MANMADE, FREE_SPACE = map(
    OCC3D_CLASSES.index, ("driveable_surface", "car", "terrain", "manmade", "free")
)
SETTINGS = CostmapSettings()
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # optical axes of a camera that looks along +x


def view(name="front", calibration=None, sensor2ego=None, ego2global=None) -> View:
    calibration = calibration or Calibration(np.array([[200.0, 0, 200], [0, 200, 100], [0, 0, 1]]), 400, 200)
    sensor2ego = make_transform(FORWARD, [0, 0, 1.5]) if sensor2ego is None else sensor2ego
    image = CameraImage(name, 0, name, "jpeg", b"")
    return View(image, calibration, sensor2ego, np.eye(4) if ego2global is None else ego2global)


def frame(*views: View, ego2global=None) -> Frame:
    return Frame(0, tuple(v.image.camera for v in views), views, np.eye(4) if ego2global is None else ego2global)


SURROUND = frame(*(view(rig.name, rig.calibration, rig.sensor2ego) for rig in synthetic_rig()))


def road() -> np.ndarray:
    """A flat road: its voxels reach up to 0.2 m above base_link."""
    semantics = np.full(OCC3D_GRID.shape, FREE_SPACE, np.uint8)
    semantics[:, :, 2] = ROAD
    return semantics


def voxel(x: float, y: float, z: float = 0.4) -> tuple[int, int, int]:
    """The voxel at a point in base_link, m."""
    i, j, k = np.floor((np.array([x, y, z]) - OCC3D_GRID.origin) / OCC3D_GRID.resolution + 1e-9).astype(int)
    return i, j, k


def column(x: float, y: float) -> tuple[int, int]:
    return voxel(x, y)[:2]


def run(semantics: np.ndarray, seen_by: Frame = SURROUND, missing=(), settings=SETTINGS) -> np.ndarray:
    return costmap(Occupancy(semantics, OCC3D_CLASSES), seen_by, missing, settings)


def plant(semantics: np.ndarray, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], label: int):
    low, high = voxel(x[0], y[0], z[0]), voxel(x[1], y[1], z[1])
    semantics[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = label


def test_a_car_ahead_left_is_an_obstacle_with_a_shadow_behind_it():
    semantics = road()
    plant(semantics, (10, 14), (4, 6), (0.2, 1.8), CAR)
    cells = run(semantics)
    assert cells.shape == (200, 200) and cells.dtype == np.int8
    obstacle = np.zeros_like(cells, bool)
    obstacle[slice(*(column(x, 0)[0] for x in (10, 14))), slice(*(column(0, y)[1] for y in (4, 6)))] = True
    assert np.array_equal(cells == OBSTACLE, obstacle)
    assert cells[column(9, 4.5)] == FREE and cells[column(12, -5)] == FREE and cells[column(-20, 5)] == FREE
    assert cells[column(16, 7)] == UNKNOWN  # behind it, seen from the camera at (1.5, 0.5)
    assert cells[column(30, 1)] == FREE  # beside the shadow
    assert cells[column(1, 0.2)] == UNKNOWN  # no camera sees the vehicle's own place
    assert (cells == FREE).mean() > 0.7


def test_rays_over_a_low_obstacle_do_not_free_what_is_behind_it():
    """The camera, at 1.5 m, looks over a wall of 1.2 m and sees the air behind it, and the ground only far behind."""
    semantics = road()
    plant(semantics, (10, 10.4), (-40, 40), (0.2, 1.4), MANMADE)
    cells = run(semantics, frame(view()))
    assert cells[column(10.1, 0)] == OBSTACLE
    assert cells[column(9, 0)] == FREE
    assert (cells[voxel(10.5, 0)[0] : voxel(30, 0)[0], 100] == UNKNOWN).all()


@pytest.mark.parametrize(
    ("z", "label", "value"),
    [
        ((0.2, 0.6), CAR, OBSTACLE),
        ((1.8, 2.2), CAR, OBSTACLE),  # a part of it is lower than 2 m
        ((2.2, 5.4), CAR, FREE),  # the vehicle passes beneath
        ((-0.2, 0.2), CAR, FREE),  # and over this
        ((0.2, 0.6), ROAD, FREE),  # a ramp
        ((0.2, 2.2), TERRAIN, FREE),  # a bank, seen from the side
    ],
)
def test_height_and_class_decide(z, label, value):
    semantics = road()
    plant(semantics, (8, 8.4), (0, 0.4), z, label)
    assert run(semantics)[column(8.1, 0.1)] == value


def test_the_settings_decide():
    semantics = road()
    plant(semantics, (8, 8.4), (0, 0.4), (0.6, 1.0), TERRAIN)
    at = column(8.1, 0.1)
    assert run(semantics)[at] == FREE
    assert run(semantics, settings=CostmapSettings(free_classes=("driveable_surface",)))[at] == OBSTACLE
    assert run(semantics, settings=CostmapSettings(free_classes=()))[at] == OBSTACLE
    assert run(semantics, settings=CostmapSettings(1.0, 2.0, ("driveable_surface",)))[at] != OBSTACLE


def test_heights_count_whole_voxels():
    def layers(low, high):
        found = CostmapSettings(low, high).layers(OCC3D_GRID)
        return found.start, found.stop

    assert layers(0.2, 2.0) == (3, 8)  # 0.2 is a voxel's edge but for rounding; 2.0 the middle of one
    assert layers(0.19, 2.2) == (2, 8)
    assert layers(0.6, 0.61) == (4, 5)
    assert layers(-5, 50) == (0, 16)


def test_only_present_cameras_see():
    everything, without_front = run(road()), run(road(), missing={"cam_front": "no image"})
    assert everything[column(20, 0)] == FREE and without_front[column(20, 0)] == UNKNOWN
    assert without_front[column(-20, 0)] == FREE
    views = tuple(None if v.image.camera == "cam_front" else v for v in SURROUND.views)
    assert np.array_equal(run(road(), Frame(0, SURROUND.cameras, views, np.eye(4))), without_front)
    assert (run(road(), missing=SURROUND.cameras) == UNKNOWN).all()


def test_obstacles_need_not_be_seen():
    semantics = road()
    plant(semantics, (20, 20.4), (0, 0.4), (0.2, 0.6), CAR)
    cells = run(semantics, missing=SURROUND.cameras)
    assert cells[column(20.1, 0.1)] == OBSTACLE and (cells == OBSTACLE).sum() == 1


def test_a_camera_looks_from_where_it_was_at_its_own_stamp():
    """A camera with a narrow view, whose image is from before the vehicle turned to the left by a quarter."""
    narrow = Calibration(np.array([[2000.0, 0, 200], [0, 200, 100], [0, 0, 1]]), 400, 200)
    before = make_transform(rotation_from_yaw(0.3), np.array([100.0, 50, 0]))
    now = before @ make_transform(rotation_from_yaw(np.pi / 2), np.array([0.0, 0, 0]))
    cells = run(road(), frame(view(calibration=narrow, ego2global=before), ego2global=now))
    assert cells[column(0.2, -20)] == FREE and cells[column(20, 0.2)] == UNKNOWN


def test_a_distorted_image_shows_less():
    k = np.array([[200.0, 0, 200], [0, 200, 100], [0, 0, 1]])
    ideal = run(road(), frame(view(calibration=Calibration(k, 400, 200))))
    pincushion = Calibration(k, 400, 200, "plumb_bob", (0.4, 0.0, 0.0, 0.0, 0.0))
    seen = run(road(), frame(view(calibration=pincushion)))
    assert ((seen == FREE) <= (ideal == FREE)).all()
    # the edge of the picture, at 1 to the side of 1 ahead, would lie at 1.4 and is cut off; 0.7 lies at 0.84
    assert ideal[column(20, 18)] == FREE and seen[column(20, 18)] == UNKNOWN and seen[column(20, 14)] == FREE


def test_what_is_above_the_ground_must_be_seen():
    semantics = road()
    plant(semantics, (8, 8.4), (0, 0.4), (0.2, 1.0), TERRAIN)
    plant(semantics, (9, 9.4), (0, 0.4), (-1, 5.4), ROAD)
    voxels = ground_voxels(Occupancy(semantics, OCC3D_CLASSES), SETTINGS).reshape(200, 200, 3)
    assert voxels[column(8.1, 0.1)].tolist() == [*column(8.1, 0.1), 5]
    assert voxels[column(9.1, 0.1)].tolist() == [*column(9.1, 0.1), 7]
    assert voxels[column(30, 0)].tolist() == [*column(30, 0), 3]


def test_free_is_what_a_line_of_sight_reaches():
    """Against steps of half a millimetre along the line from each camera to each column's voxel, in a random world."""
    rng = np.random.default_rng(0)
    grid = VoxelGrid((-4.0, -4.0, -1.0), 0.5, (16, 16, 6))
    semantics = np.where(rng.random(grid.shape) < 0.06, CAR, FREE_SPACE).astype(np.uint8)
    occupancy = Occupancy(semantics, OCC3D_CLASSES, grid)
    cameras = [  # at no voxel's edge, where a ray may go either way
        make_transform(FORWARD, [0.013, 0.171, 1.437]),
        make_transform(np.diag([-1.0, -1, 1]) @ FORWARD, [-0.031, 0.117, 1.219]),
    ]
    seen_by = frame(*(view(f"camera {n}", sensor2ego=camera) for n, camera in enumerate(cameras)))
    cells = costmap(occupancy, seen_by, (), SETTINGS)
    voxels = ground_voxels(occupancy, SETTINGS)
    seen = np.zeros(grid.shape, bool)
    for sensor2ego in cameras:
        start = sensor2ego[:3, 3]
        for goal in np.array(grid.origin) + grid.resolution * (voxels + 0.5):
            x, y, z = transform_points(invert_transform(sensor2ego), goal[None])[0]
            if z <= 0 or not (-0.5 < 200 * x / z + 200 < 399.5 and -0.5 < 200 * y / z + 100 < 199.5):
                continue
            on = np.arange(0, 12, 5e-4)[:, None] * (goal - start) / np.linalg.norm(goal - start) + start
            way = np.floor((on - grid.origin) / grid.resolution).astype(int)
            way = way[((way >= 0) & (way < grid.shape)).all(axis=1)]
            hits = np.flatnonzero(semantics[tuple(way.T)] == CAR)
            seen[tuple(way[: hits[0] + 1 if len(hits) else None].T)] = True
    obstacle = (semantics[:, :, 2:] == CAR).any(axis=2)
    free = seen[tuple(voxels.T)].reshape(16, 16) & ~obstacle
    assert obstacle.any() and 30 < free.sum() < (~obstacle).sum() - 20
    assert np.array_equal(cells == OBSTACLE, obstacle)
    assert ((cells == FREE) != free).sum() <= 1  # a ray may touch a voxel's corner for less than a step


def test_rays_end_at_points_in_the_picture():
    points = np.array([[10.0, 0, 1.5], [10, 9.9, 1.5], [10, 10.1, 1.5], [-10, 0, 1.5], [10, 0, 6.6], [10, 0, -3.4]])
    origins, directions = camera_rays(frame(view()), (), points)
    assert np.allclose(origins + directions, points[[0, 1, 5]])
    assert camera_rays(frame(view()), ("front",), points)[0].shape == (0, 3)


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="must be the lower one"):
        CostmapSettings(min_height=2.0, max_height=2.0)
    with pytest.raises(ValueError, match="'road'; the classes are others, barrier"):
        run(road(), settings=CostmapSettings(free_classes=("road", "terrain")))
    with pytest.raises(ValueError, match="holds 'free'"):
        run(road(), settings=CostmapSettings(free_classes=("terrain", "free")))
    with pytest.raises(ValueError, match="the grid reaches from -1 to 5.4 m"):
        run(road(), settings=CostmapSettings(5.4, 7.0))
