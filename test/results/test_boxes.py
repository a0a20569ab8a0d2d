import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bev_perception.geometry import box_corners, invert_transform, make_transform, rotation_from_yaw, transform_points
from bev_perception.results.boxes import to_ego
from bev_perception.types import Boxes3D


def some_boxes(rng, n):
    return Boxes3D(
        rng.normal(size=(n, 3)) * 20,
        rng.uniform(0.1, 9, (n, 3)),
        rng.uniform(-np.pi, np.pi, n),
        rng.normal(size=(n, 2)) * 5,
        rng.random(n),
        rng.integers(0, 3, n),
        ("a", "b", "c"),
    )


@given(st.integers(0, 2**32), st.integers(0, 5), st.floats(-10, 10))
def test_to_ego_moves_boxes_as_rigid_bodies(seed, n, yaw):
    rng = np.random.default_rng(seed)
    boxes = some_boxes(rng, n)
    transform = make_transform(rotation_from_yaw(yaw), rng.normal(size=3))
    moved = to_ego(boxes, transform)
    corners = box_corners(boxes.centers, boxes.sizes, boxes.yaws).reshape(-1, 3)
    found = box_corners(moved.centers, moved.sizes, moved.yaws).reshape(-1, 3)
    np.testing.assert_allclose(found, transform_points(transform, corners), atol=1e-9)
    ahead = np.c_[boxes.velocities, np.zeros(n)] @ transform[:3, :3].T
    np.testing.assert_allclose(moved.velocities, ahead[:, :2], atol=1e-9)
    assert (moved.scores == boxes.scores).all() and (moved.labels == boxes.labels).all()
    back = to_ego(moved, invert_transform(transform))
    np.testing.assert_allclose(back.centers, boxes.centers, atol=1e-9)


def test_to_ego_from_the_lidar_of_nuscenes():
    """A car ahead of the vehicle that drives ahead: y of the lidar is ahead, x of base_link is."""
    box = Boxes3D(
        np.array([[0.0, 10, 0]]), np.array([[4.0, 2, 1.5]]), np.array([np.pi / 2]), np.array([[0.0, 3]]),
        np.array([0.5]), np.array([0]), ("car",),
    )  # fmt: skip
    moved = to_ego(box, make_transform(rotation_from_yaw(-np.pi / 2), np.array([0.94, 0, 1.84])))
    np.testing.assert_allclose(moved.centers, [[10.94, 0, 1.84]], atol=1e-12)
    np.testing.assert_allclose(moved.yaws, [0], atol=1e-12)
    np.testing.assert_allclose(moved.velocities, [[3, 0]], atol=1e-12)
