"""Occupancy as points."""

import numpy as np

from bev_perception.classes import OCC3D_CLASSES, OCC3D_COLORS
from bev_perception.results.point_cloud import POINT, occupied_points
from bev_perception.types import OCC3D_GRID, Occupancy, VoxelGrid


def test_a_voxel_is_a_point_at_its_middle_in_its_class_colour():
    semantics = np.full(OCC3D_GRID.shape, OCC3D_CLASSES.index("free"), np.uint8)
    instances = np.zeros(OCC3D_GRID.shape, np.int16)
    semantics[125, 115, 3], instances[125, 115, 3] = OCC3D_CLASSES.index("truck"), 300
    semantics[0, 0, 0] = OCC3D_CLASSES.index("terrain")
    terrain, truck = occupied_points(Occupancy(semantics, OCC3D_CLASSES, instances=instances))
    assert np.allclose([terrain[axis] for axis in "xyz"], (-39.8, -39.8, -0.8))
    assert np.allclose([truck[axis] for axis in "xyz"], (10.2, 6.2, 0.4), atol=1e-6)
    assert (terrain["label"], terrain["instance"]) == (OCC3D_CLASSES.index("terrain"), 0)
    assert (truck["label"], truck["instance"]) == (OCC3D_CLASSES.index("truck"), 300)
    # the bytes that viewers read: blue, green, red, 0
    assert tuple(truck.tobytes()[12:16]) == (*OCC3D_COLORS["truck"][::-1], 0)


def test_free_space_alone_is_no_point():
    grid = VoxelGrid((0.0, 0.0, 0.0), 1.0, (2, 2, 2))
    points = occupied_points(Occupancy(np.ones(grid.shape, np.uint8), ("car", "free"), grid))
    assert points.shape == (0,) and points.dtype == POINT


def test_without_instances_all_are_zero():
    grid = VoxelGrid((0.0, 0.0, 0.0), 1.0, (2, 3, 4))
    points = occupied_points(Occupancy(np.zeros(grid.shape, np.uint8), ("car", "free"), grid))
    assert len(points) == 24 and not points["instance"].any()
    assert sorted(set(points["z"].tolist())) == [0.5, 1.5, 2.5, 3.5]
