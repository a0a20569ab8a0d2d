"""Occupancy from above and in perspective: voxels lie where the grid says, the top-most one is seen."""

import numpy as np
import pytest

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.types import OCC3D_GRID, Occupancy, VoxelGrid
from bev_perception.visualization.canvas import BACKGROUND, CAPTION, bgr_colors
from bev_perception.visualization.occupancy import (
    BIRDS_EYE,
    CAMERA_TILE,
    PANEL,
    PERSPECTIVE_HEIGHT,
    draw_occupancy,
    draw_occupancy_from_above,
    draw_perspective,
    voxel_colors,
)

COLORS = dict(zip(OCC3D_CLASSES, bgr_colors(OCC3D_CLASSES), strict=True))
FREE = OCC3D_CLASSES.index("free")


def planted(blocks, instances=None, grid=OCC3D_GRID):
    """An occupancy that is free but for `blocks`: [(class name, slices of x, y, z)]."""
    semantics = np.full(grid.shape, FREE, np.uint8)
    for name, where in blocks:
        semantics[where] = OCC3D_CLASSES.index(name)
    return Occupancy(semantics, OCC3D_CLASSES, grid, instances)


def index(x, y, z=0.2, grid=OCC3D_GRID):
    """The voxel that holds a point of base_link, m."""
    return tuple(int((at - o) // grid.resolution) for at, o in zip((x, y, z), grid.origin, strict=True))


def block(x, y, half=1.0, grid=OCC3D_GRID):
    """The slices of a block round a point, over the full height."""
    low, high = index(x - half, y - half, grid=grid), index(x + half, y + half, grid=grid)
    return np.s_[low[0] : high[0], low[1] : high[1], :]


def middle(picture, name):
    """The (u, v) in the middle of what has the class's colour."""
    v, u = np.nonzero((picture == COLORS[name]).all(-1))
    return np.array([u.min() + u.max(), v.min() + v.max()]) / 2


@pytest.mark.parametrize(("x", "y"), [(30.0, 0.0), (-30.0, 0.0), (0.0, 30.0), (0.0, -30.0), (25.0, -15.0)])
def test_from_above_forward_is_up_and_left_is_left(x, y):
    size = 480
    picture = draw_occupancy_from_above(planted([("bus", block(x, y))]), size)
    scale = (size / 2 - 12) / 40
    np.testing.assert_allclose(middle(picture, "bus"), (240 - scale * y, 240 - scale * x), atol=0.7 * scale)


def test_from_above_every_voxel_lies_between_its_corners():
    """Single voxels, among them the grid's first and last, at the scale that rounds worst."""
    size = 333
    scale = (size / 2 - 12) / 40
    for i, j in ((0, 0), (199, 199), (0, 199), (100, 7), (57, 150)):
        picture = draw_occupancy_from_above(planted([("bus", np.s_[i, j, 3])]), size)
        v, u = np.nonzero((picture == COLORS["bus"]).all(-1))
        x, y = -40 + 0.4 * i, -40 + 0.4 * j
        assert len(u) and (u >= size / 2 - scale * (y + 0.4) - 1).all() and (u <= size / 2 - scale * y + 1).all()
        assert (v >= size / 2 - scale * (x + 0.4) - 1).all() and (v <= size / 2 - scale * x + 1).all()


def test_from_above_the_topmost_voxel_is_seen_and_free_is_transparent():
    road, tree = block(20.0, 0.0, 4.0), block(20.0, 0.0, 1.0)
    occupancy = planted([("driveable_surface", (*road[:2], 1)), ("vegetation", (*tree[:2], 12))])
    picture = draw_occupancy_from_above(occupancy, 480)
    # the tree's crown hides the road below it; between the two is only air
    np.testing.assert_allclose(middle(picture, "vegetation"), middle(picture, "driveable_surface"), atol=2)
    empty = draw_occupancy_from_above(planted([]), 480)
    changed = (picture != empty).any(-1)
    v, u = np.nonzero(changed)
    assert 0 < changed.sum() < 60**2 and (np.abs(u - 240) < 30).all()
    assert (empty == BACKGROUND).all(-1).mean() > 0.9


def test_another_grid_has_its_own_reach():
    grid = VoxelGrid((0.0, -10.0, 0.0), 0.5, (60, 40, 4))  # ahead only, 30 m
    picture = draw_occupancy_from_above(planted([("bus", block(25.0, -5.0, 1.0, grid))], grid=grid), 324)
    np.testing.assert_allclose(middle(picture, "bus"), (162 + 5 * 5, 162 - 5 * 25), atol=4)


def test_objects_have_a_colour_each_and_stuff_its_class():
    cars, bus = [block(10.0, y) for y in (-10.0, 0.0, 10.0)], block(-20.0, 0.0)
    instances = np.zeros(OCC3D_GRID.shape, np.int16)
    for number, where in enumerate([*cars, bus], start=1):
        instances[where] = number
    road = block(20.0, 20.0)
    instances[road] = 9  # panoptic models number stuff too
    blocks = [*(("car", where) for where in cars), ("bus", bus), ("driveable_surface", road)]
    colors = voxel_colors(planted(blocks, instances))
    seen = [tuple(colors[where].reshape(-1, 3)[0].tolist()) for where in [*cars, bus]]
    assert len(set(seen)) == 4 and all(max(color) > 200 for color in seen)
    assert all((colors[where] == color).all() for where, color in zip([*cars, bus], seen, strict=True))
    assert (colors[road] == COLORS["driveable_surface"]).all()
    semantic = voxel_colors(planted(blocks))
    assert all((semantic[where] == COLORS["car"]).all() for where in cars)


def test_in_perspective_forward_is_up_left_is_left_and_the_car_stands_in_the_middle():
    size = (640, 400)
    empty = draw_perspective(planted([]), size)
    v, u = np.nonzero((empty != BACKGROUND).any(-1))
    assert abs(u.mean() - 319.5) < 1 and len(u) > 100
    car = v.mean()

    def seen(x, y):
        picture = draw_perspective(planted([("bus", block(x, y))]), size)
        v, u = np.nonzero((picture != empty).any(-1))
        return u.mean(), v.mean()

    assert seen(25.0, 0.0)[1] < car - 30 and seen(-20.0, 0.0)[1] > car + 30
    assert seen(5.0, 20.0)[0] < 220 and seen(5.0, -20.0)[0] > 420


def test_the_truth_stands_beside_the_prediction():
    predicted, truth = planted([("bus", block(20.0, 0.0))]), planted([("car", block(20.0, 0.0))])
    picture = draw_occupancy(predicted, truth)
    assert picture.shape == (PERSPECTIVE_HEIGHT + BIRDS_EYE + CAPTION, 2 * PANEL, 3)
    left, right = picture[PERSPECTIVE_HEIGHT:, :BIRDS_EYE], picture[PERSPECTIVE_HEIGHT:, PANEL : PANEL + BIRDS_EYE]
    for half, mine, other in ((left, "bus", "car"), (right, "car", "bus")):
        assert (half == COLORS[mine]).all(-1).sum() > 50 and not (half == COLORS[other]).all(-1).any()
    assert np.array_equal(picture[:-CAPTION, PANEL:], draw_occupancy(None, truth)[:-CAPTION])
    # "predicted" and "ground truth" are written over the same picture
    both = draw_occupancy(predicted, predicted)
    assert (both[:40, :PANEL] != both[:40, PANEL:]).any()


def test_cameras_stand_above_where_there_are_any(frame_and_images):
    frame, images = frame_and_images
    occupancy = planted([])
    width, height = CAMERA_TILE
    alone, beside = draw_occupancy(occupancy, None, frame, images), draw_occupancy(occupancy, occupancy, frame, images)
    without = draw_occupancy(occupancy)
    assert alone.shape == (without.shape[0] + 2 * height, PANEL, 3)
    assert beside.shape == (without.shape[0] + height, 2 * PANEL, 3)
    front = np.s_[60:160, width + 20 : 2 * width - 20]  # in both the second of the first row
    assert (alone[front] == images["cam_front"][0, 0]).all() and (beside[front] == images["cam_front"][0, 0]).all()


def test_pictures_are_repeatable():
    rng = np.random.default_rng(5)
    semantics = np.where(rng.random(OCC3D_GRID.shape) < 0.02, rng.integers(0, 17, OCC3D_GRID.shape), FREE)
    occupancy = Occupancy(semantics.astype(np.uint8), OCC3D_CLASSES)
    assert np.array_equal(draw_occupancy(occupancy), draw_occupancy(occupancy))
