import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bev_perception import geometry
from bev_perception.strict import UserError

SECOND = 1_000_000_000
quaternions = st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.05)


def random_pose(seed):
    rng = np.random.default_rng(seed)
    return geometry.make_transform(Rotation.random(random_state=seed).as_matrix(), rng.uniform(-50, 50, 3))


@given(quaternions)
def test_quaternion_and_rotation_agree_with_scipy(q):
    w, x, y, z = q
    ours = geometry.rotation_from_quaternion(w, x, y, z)
    assert np.allclose(ours, Rotation.from_quat([x, y, z, w]).as_matrix())
    back = geometry.quaternion_from_rotation(ours)
    assert back[0] >= 0
    assert np.allclose(geometry.rotation_from_quaternion(*back), ours)


@pytest.mark.parametrize("q", [(0, 0, 0, 0), (math.nan, 0, 0, 1), (math.inf, 0, 0, 0)])
def test_no_rotation_is_an_error(q):
    with pytest.raises(UserError, match="no rotation"):
        geometry.rotation_from_quaternion(*q)


def test_inverse_and_stacks():
    poses = np.stack([random_pose(i) for i in range(4)])
    assert np.allclose(geometry.invert_transform(poses) @ poses, np.eye(4))
    assert np.allclose(geometry.invert_transform(poses[1]), np.linalg.inv(poses[1]))


def test_project_puts_a_point_on_the_axis_at_the_principal_point():
    k = geometry.intrinsics_4x4(np.array([[1000.0, 0, 320], [0, 1000, 240], [0, 0, 1]]))
    pixels, depth = geometry.project(k, np.array([[0.0, 0, 5], [1, 0, 10], [0, 0, -1]]))
    assert np.allclose(pixels[:2], [[320, 240], [420, 240]])
    assert np.allclose(depth, [5, 10, -1])


@given(st.floats(-math.pi, math.pi))
def test_yaw_round_trip(yaw):
    assert math.isclose(geometry.yaw_from_rotation(geometry.rotation_from_yaw(yaw)), yaw, abs_tol=1e-12)


def test_box_corners_front_is_along_the_heading():
    corners = geometry.box_corners(np.array([[10.0, 5, 1]]), np.array([[4.0, 2, 1.5]]), np.array([math.pi / 2]))[0]
    front = corners[[0, 3, 4, 7]]
    assert np.allclose(front[:, 1], 7)  # half of the length ahead, which is +y at this yaw
    assert np.allclose(sorted(front[:, 0]), [9, 9, 11, 11])
    assert np.allclose(corners[:4, 2], 0.25)


def test_interpolation_matches_slerp():
    a, b = random_pose(1), random_pose(2)
    mid = geometry.interpolate_transform(a, b, 0.3)
    from scipy.spatial.transform import Slerp

    slerp = Slerp([0, 1], Rotation.from_matrix([a[:3, :3], b[:3, :3]]))
    assert np.allclose(mid[:3, :3], slerp(0.3).as_matrix())
    assert np.allclose(mid[:3, 3], 0.7 * a[:3, 3] + 0.3 * b[:3, 3])
