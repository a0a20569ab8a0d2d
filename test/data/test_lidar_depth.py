"""Maps of lidar depth: the nearest point wins, and what is not seen is left out."""

import numpy as np

from bev_perception.data.lidar_depth import NO_DEPTH, depth_pyramid, nearest_depths, project_lidar

#: looks along +x; focal length 10, 40 x 20 pixels, middle at (20, 10)
CAMERA = np.array([[20.0, -10.0, 0.0, 0.0], [10.0, 0.0, -10.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
SIZE = (20, 40)


def maps(points, **settings):
    values = {"image_size": SIZE, "strides": (1, 4), "max_depth": 60.0, "clip": True, **settings}
    return depth_pyramid(np.array(points, np.float32), CAMERA[None], **values)


def test_projection():
    u, v, depth = project_lidar(np.array([[10.0, 5.0, 2.0], [-1.0, 0.0, 0.0]]), CAMERA[None])
    assert (u[0, 0], v[0, 0], depth[0].tolist()) == (15.0, 8.0, [10.0, -1.0])
    assert np.isfinite(u).all()


def test_the_nearest_point_of_a_cell_wins():
    fine, coarse = maps([[30.0, 0, 0], [10.0, -1.4, 0], [20.0, 0, 0]])
    assert fine.shape == (1, 20, 40)
    assert coarse.shape == (1, 5, 10)
    assert fine[0, 10, 20] == 20.0
    assert fine[0, 10, 21] == 10.0  # column 21.4
    assert coarse[0, 2, 5] == 10.0


def test_behind_beside_and_too_near():
    fine, coarse = maps([[-10.0, 0, 0], [10.0, 100.0, 0], [0.05, 0, 0], [10.0, -20.6, 0]])
    assert (fine == NO_DEPTH).all()
    assert (coarse == NO_DEPTH).all()


def test_far_points_are_clipped_or_left_out():
    assert maps([[70.0, 0, 0]])[0].max() == 60.0
    assert maps([[70.0, 0, 0]], clip=False)[0].max() == NO_DEPTH


def test_cells_outside_are_left_out():
    columns, rows = np.array([-1, 0, 2, 1]), np.array([0, 0, 0, 2])
    found = nearest_depths(columns, rows, np.array([1.0, 2.0, 3.0, 4.0]), (2, 2), empty=0.0)
    assert found.tolist() == [[2.0, 0.0], [0.0, 0.0]]


def test_no_points():
    assert (maps(np.zeros((0, 3)))[1] == NO_DEPTH).all()
