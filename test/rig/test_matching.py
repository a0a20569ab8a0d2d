"""Two views of a made-up wall, and calibrations that are right or wrong."""

import cv2
import numpy as np
import pytest

from bev_perception.geometry import invert_transform, make_transform, rotation_from_yaw
from bev_perception.rig.description import Rig
from bev_perception.rig.matching import check_neighbours, epipolar_errors, in_company, shared_direction
from bev_perception.rig.projection import rays_of
from bev_perception.rig.recording import Picture, PoseTrack, Recording
from rig.kit import calibration, camera, looking

LENS = calibration(focal=280.0, size=(400, 300))
MOUNTS = {"a": looking(yaw=20, at=(1.5, 0.3, 1.5)), "b": looking(yaw=-20, at=(1.5, -0.3, 1.5))}
NOWHERE = PoseTrack(np.zeros(0), np.zeros((0, 4, 4)))


def wall_picture(mount, lens=LENS):
    """Return what a camera sees of a noisy wall 20 m ahead."""
    rng = np.random.default_rng(0)
    wall = cv2.GaussianBlur(rng.integers(0, 255, (600, 1200)).astype(np.uint8), (0, 0), 2.0)
    wall = cv2.normalize(wall, None, 0, 255, cv2.NORM_MINMAX)
    u, v = np.meshgrid(np.arange(lens.width), np.arange(lens.height))
    rays = rays_of(lens, np.stack([u, v], -1).reshape(-1, 2)) @ mount[:3, :3].T
    distance = (20 - mount[0, 3]) / rays[:, 0]
    hit = mount[:3, 3] + rays * distance[:, None]
    x, y = 600 - hit[:, 1] * 30, 300 - hit[:, 2] * 30
    shape = (lens.height, lens.width)
    return cv2.remap(wall, x.reshape(shape).astype(np.float32), y.reshape(shape).astype(np.float32), cv2.INTER_LINEAR)


def judge(given, lens=LENS):
    """Return the finding about two cameras that tf puts at `given`."""
    moment = {name: Picture.of(name, 0, wall_picture(mount, lens)) for name, mount in MOUNTS.items()}
    cameras = tuple(camera(name, lens, pose) for name, pose in given.items())
    (finding,) = check_neighbours(Recording(Rig(cameras), NOWHERE, {}, {}, [moment]))
    return finding


@pytest.mark.parametrize(
    "lens", [LENS, calibration(230.0, (400, 300), model="equidistant", d=(-0.02, 0.003, 0.0, 0.0))]
)
def test_right_calibrations_agree(lens):
    finding = judge(MOUNTS, lens)
    assert finding.level == "OK"
    assert float(finding.figure.split()[0]) < 1.0


def test_a_camera_that_is_pitched_contradicts_its_neighbour():
    finding = judge(MOUNTS | {"b": looking(yaw=-20, pitch=6, at=(1.5, -0.3, 1.5))})
    assert finding.level == "FAIL"
    assert "contradict" in finding.remedy


def test_views_that_do_not_overlap_are_no_neighbours():
    assert shared_direction(camera(lens=LENS), camera(lens=LENS, pose=looking(yaw=120))) is None


def test_epipolar_errors_of_exact_points_are_zero():
    points = np.random.default_rng(1).uniform((5, -5, -1), (30, 5, 6), (50, 3))
    a2b = invert_transform(MOUNTS["b"]) @ MOUNTS["a"]
    rays = []
    for mount in MOUNTS.values():
        seen = (points - mount[:3, 3]) @ mount[:3, :3]
        rays.append(seen / np.linalg.norm(seen, axis=1, keepdims=True))
    assert epipolar_errors(*rays, a2b).max() < 1e-9
    assert np.median(epipolar_errors(*rays, make_transform(rotation_from_yaw(0.1), np.zeros(3)) @ a2b)) > 1e-3


def test_only_matches_in_company_count():
    shifts = np.array([[3, 0], [4, 1], [2, 0], [3, 2], [90, 10], [-40, 60]])
    assert in_company(shifts).tolist() == [True, True, True, True, False, False]
    assert in_company(np.zeros((0, 2))).shape == (0,)
