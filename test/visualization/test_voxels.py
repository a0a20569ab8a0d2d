"""Voxels in perspective: every pixel shows what a ray through it meets first."""

import time

import numpy as np
import pytest

from bev_perception.visualization import voxels
from bev_perception.visualization.canvas import BACKGROUND
from bev_perception.visualization.voxels import BEHIND_ABOVE, SHADES, Viewpoint, VoxelView

RED, GREEN = (0, 0, 250), (0, 250, 0)
ORIGIN = (-2.0, -2.0, -1.0)


def grid(shape, planted, color):
    """An occupied grid and its colours.  planted: indices that are occupied."""
    occupied = np.zeros(shape, bool)
    colors = np.zeros((*shape, 3), np.uint8)
    for at in planted:
        occupied[at] = True
        colors[at] = color
    return occupied, colors


def where(picture, color):
    """The (u, v) of the pixels in any shade of a pure colour."""
    channel = int(np.argmax(color))
    others = [c for c in range(3) if c != channel]
    v, u = np.nonzero((picture[..., channel] > 80) & (picture[..., others] == 0).all(-1))
    return np.stack([u, v], axis=1)


def project(viewpoint, size, point):
    """The pixel of a point, by the pinhole's formula."""
    x, y, depth = viewpoint.world2camera @ (np.array(point) - viewpoint.eye)
    focal = size[0] / 2 / np.tan(np.radians(viewpoint.field) / 2)
    return np.array([size[0] / 2 - 0.5 + focal * x / depth, size[1] / 2 - 0.5 + focal * y / depth])


def cast_rays(occupied, colors, origin, step, viewpoint, size):
    """What rays through all pixels meet, box by box: the oracle.  Returns colours [h, w, 3], unshaded by seams."""
    width, height = size
    focal = width / 2 / np.tan(np.radians(viewpoint.field) / 2)
    u, v = np.meshgrid(np.arange(width) - width / 2 + 0.5, np.arange(height) - height / 2 + 0.5)
    rays = np.stack([u / focal, v / focal, np.ones_like(u)], -1) @ viewpoint.world2camera  # [h, w, 3], depth 1
    cells = np.argwhere(occupied)
    low = np.array(origin) + step * cells - viewpoint.eye  # [n, 3]
    with np.errstate(divide="ignore"):
        ends = np.stack([low, low + step])[:, None, None] / rays[None, :, :, None]  # [2, h, w, n, 3]
    enter = ends.min(0)
    depth, axis = enter.max(-1), enter.argmax(-1)  # [h, w, n]
    hit = (depth < ends.max(0).min(-1)) & (depth > voxels.NEAR)
    depth = np.where(hit, depth, np.inf)
    first = depth.argmin(-1)
    axis = np.take_along_axis(axis, first[..., None], -1)[..., 0]
    seen = colors[tuple(np.moveaxis(cells[first], -1, 0))]
    shaded = np.round(seen * np.array(SHADES)[axis][..., None])
    return np.where(hit.any(-1)[..., None], shaded, BACKGROUND)


@pytest.mark.parametrize(
    "viewpoint",
    [
        Viewpoint((-6.0, 0.3, 5.0), (0.0, 0.0, 0.0)),
        Viewpoint((4.0, 5.0, 3.0), (0.0, 0.0, 0.0), 60.0),
        Viewpoint((1.0, -6.0, -4.0), (0.0, 0.0, 0.0)),  # from below
        Viewpoint((0.1, 0.2, 0.3), (3.0, 1.0, 0.0), 95.0),  # from amidst
        Viewpoint((-7.0, 0.0, 0.5), (0.0, 0.0, 0.5)),  # level, along planes of voxels
    ],
)
@pytest.mark.parametrize("density", [0.08, 0.5])
def test_every_pixel_is_what_its_ray_meets_first(viewpoint, density, monkeypatch):
    monkeypatch.setattr(voxels, "SEAM", 1.0)
    rng = np.random.default_rng(round(100 * density))
    occupied = rng.random((8, 7, 5)) < density
    occupied[3:6, 3:6, 1:4] = False  # room for the eye amidst
    colors = rng.integers(40, 255, (*occupied.shape, 3), dtype=np.uint8)
    size = (120, 90)
    view = VoxelView(size, viewpoint)
    view.add(occupied, colors, ORIGIN, (0.5, 0.5, 0.5))
    expected = cast_rays(occupied, colors, ORIGIN, 0.5, viewpoint, size)
    wrong = (np.abs(view.picture().astype(int) - expected) > 1).any(-1)
    assert (expected != BACKGROUND).any(-1).mean() > 0.05
    assert wrong.mean() < 0.002  # pixels that a face ends in


def test_a_near_voxel_hides_the_far_one():
    viewpoint = Viewpoint((-8.0, 0.25, 1.25), (0.0, 0.25, 1.25))
    far, near = grid((8, 8, 8), [(6, 4, 4)], RED), grid((8, 8, 8), [(2, 4, 4)], GREEN)
    for order in ((far, near), (near, far)):
        view = VoxelView((200, 200), viewpoint)
        for occupied, colors in order:
            view.add(occupied, colors, ORIGIN, (0.5, 0.5, 0.5))
        picture = view.picture()
        assert len(where(picture, GREEN)) and not len(where(picture, RED))
    alone = VoxelView((200, 200), viewpoint)
    alone.add(*far, ORIGIN, (0.5, 0.5, 0.5))
    assert len(where(alone.picture(), RED))


@pytest.mark.parametrize("at", [(0, 0, 0), (7, 0, 0), (0, 7, 7), (7, 7, 0), (3, 4, 2)])
def test_a_voxel_stands_where_it_projects(at):
    size = (640, 480)
    view = VoxelView(size)
    view.add(*grid((8, 8, 8), [at], RED), (-16.0, -16.0, -4.0), (4.0, 4.0, 1.0))
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    corners = np.array((-16.0, -16.0, -4.0)) + (at + corners) * (4.0, 4.0, 1.0)
    pixels = np.array([project(BEHIND_ABOVE, size, corner) for corner in corners])
    seen = where(view.picture(), RED)
    np.testing.assert_allclose(seen.min(0), pixels.min(0), atol=1.5)
    np.testing.assert_allclose(seen.max(0), pixels.max(0), atol=1.5)


def test_from_behind_ahead_is_up_and_left_is_left():
    def middle(at):
        view = VoxelView((320, 240))
        view.add(*grid((9, 9, 1), [at], RED), (-36.0, -36.0, 0.0), (8.0, 8.0, 2.0))
        return where(view.picture(), RED).mean(0)

    centre = middle((4, 4, 0))
    assert middle((8, 4, 0))[1] < centre[1] - 20 and abs(middle((8, 4, 0))[0] - centre[0]) < 1
    assert middle((4, 7, 0))[0] < centre[0] - 40 and middle((4, 1, 0))[0] > centre[0] + 40


def test_faces_are_shaded_by_direction():
    view = VoxelView((200, 200), Viewpoint((-3.0, -3.0, 3.0), (0.25, 0.25, 0.25)))
    view.add(*grid((1, 1, 1), [(0, 0, 0)], RED), (0.0, 0.0, 0.0), (0.5, 0.5, 0.5))
    shades = np.unique(view.picture()[..., 2][where(view.picture(), RED)[:, 1], where(view.picture(), RED)[:, 0]])
    assert {round(250 * shade) for shade in SHADES} <= set(shades.tolist())


@pytest.mark.parametrize(("distance", "told_apart"), [(3.0, True), (120.0, False)])
def test_neighbours_that_are_near_are_told_apart(distance, told_apart):
    """Two voxels of one colour have a darker line between them; far ones would be nothing but lines."""
    view = VoxelView((600, 600), Viewpoint((-distance, 0.0, distance), (0.0, 0.0, 0.0)))
    view.add(*grid((1, 2, 1), [(0, 0, 0), (0, 1, 0)], RED), (0.0, -0.5, -0.5), (0.5, 0.5, 0.5))
    picture = view.picture()
    darkest = picture[..., 2][(picture != BACKGROUND).any(-1)].min()
    assert (darkest < 250 * min(SHADES) - 20) == told_apart


def test_nothing_is_background_and_a_picture_is_repeatable():
    view = VoxelView((64, 48))
    assert (view.picture() == BACKGROUND).all()
    view.add(np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4, 3), np.uint8), ORIGIN, (1.0, 1.0, 1.0))
    assert (view.picture() == BACKGROUND).all()
    view.add(*grid((4, 4, 4), [(0, 0, 0)], RED), (-200.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # behind the eye
    assert (view.picture() == BACKGROUND).all()
    rng = np.random.default_rng(1)
    occupied, colors = rng.random((20, 20, 4)) < 0.3, rng.integers(0, 255, (20, 20, 4, 3), dtype=np.uint8)
    pictures = []
    for _ in range(2):
        view = VoxelView((64, 48))
        view.add(occupied, colors, (-20.0, -20.0, 0.0), (2.0, 2.0, 2.0))
        pictures.append(view.picture())
    assert np.array_equal(*pictures) and (pictures[0] != BACKGROUND).any()


def test_a_full_grid_takes_seconds_at_most():
    rng = np.random.default_rng(0)
    occupied = rng.random((200, 200, 16)) < 0.5
    colors = rng.integers(0, 255, (200, 200, 16, 3), dtype=np.uint8)
    start = time.process_time()
    view = VoxelView((960, 460))
    view.add(occupied, colors, (-40.0, -40.0, -1.0), (0.4, 0.4, 0.4))
    view.picture()
    assert time.process_time() - start < 4  # 1 s on an idle core; twice the limit of a real label
