import numpy as np
import pytest
import torch

from bev_perception.data.records import open_split
from bev_perception.evaluation.lidar_rays import (
    cast_lidar,
    lidar_directions,
    lidar_origins,
    measure_casting,
    origins_in_ego,
)
from bev_perception.geometry import make_transform, rotation_from_yaw, transform_points
from bev_perception.types import OCC3D_GRID

FREE = 17


def test_directions():
    rays = lidar_directions()
    assert rays.shape == (14040, 3) and rays.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rays, axis=1), 1, atol=1e-6)
    rows = rays.reshape(39, 360, 3)
    ground = rows[:10, 0, 0] / -rows[:10, 0, 2]  # where they meet the ground, in heights of the lidar
    np.testing.assert_allclose(ground, np.arange(1, 11), rtol=1e-5)
    pitches = np.arcsin(rows[:, 0, 2].astype(float))
    np.testing.assert_allclose(np.diff(pitches[9:]), pitches[9] - pitches[8], atol=1e-6)
    assert pitches[-2] < 0.21 <= pitches[-1]
    np.testing.assert_allclose(
        rows[5, 90] / np.linalg.norm(rows[5, 90, :2]), [0, 1, rows[5, 0, 2] / rows[5, 0, 0]], atol=1e-5
    )


def drive(steps, slope=0.0):
    """lidar2global of a drive along x, a step a frame; the lidar is turned by a right angle, 2 m up."""
    lidar2ego = make_transform(rotation_from_yaw(-np.pi / 2), np.array([1.0, 0, 2]))
    at = np.cumsum(steps)
    poses = [make_transform(rotation_from_yaw(0.0), np.array([500 + x, 100, slope * x])) for x in at]
    return np.stack([pose @ lidar2ego for pose in poses]), lidar2ego


def test_origins_are_where_the_lidar_was():
    lidar2global, lidar2ego = drive([0, 5, 5, 5])
    origins = origins_in_ego(lidar2global, 1, lidar2ego)
    np.testing.assert_allclose(origins, [[-4, 0, 2], [1, 0, 2], [6, 0, 2], [11, 0, 2]], atol=1e-5)
    assert origins[1].tolist() == [1, 0, 2]  # its own, exactly


def test_origins_far_away_do_not_count_and_many_are_thinned_out():
    lidar2global, lidar2ego = drive([0] + [1] * 200, slope=3)  # up to 600 m high: heights do not matter
    origins = origins_in_ego(lidar2global, 100, lidar2ego)
    reachable = np.arange(-39, 38) + 1  # -38 to 38 m: 77 of them
    np.testing.assert_allclose(origins[:, 0], reachable[[0, 11, 22, 33, 43, 54, 65, 76]], atol=1e-4)
    np.testing.assert_allclose(origins[:, 2], 2 + 3 * (origins[:, 0] - 1), atol=1e-3)
    lidar2global, lidar2ego = drive([0] + [1] * 7)
    assert len(origins_in_ego(lidar2global, 0, lidar2ego)) == 8
    # 10 of them: 9 / 7 apart, rounded
    lidar2global, lidar2ego = drive([0] + [1] * 9)
    np.testing.assert_allclose(origins_in_ego(lidar2global, 0, lidar2ego)[:, 0], np.array([0, 1, 3, 4, 5, 6, 8, 9]) + 1)


def test_origins_of_records_are_of_the_scene_alone(synthetic_nuscenes):
    records = open_split(synthetic_nuscenes, "v1.0-mini", "mini_val")
    for i in (0, 2, 7):
        scene = [j for j in range(len(records)) if records.scenes[j] == records.scenes[i]]
        assert len(scene) == 5
        ego2global = records.ego2global(i)
        wanted = [np.linalg.solve(ego2global, records.lidar2global(j)[:, 3])[:3] for j in scene]
        found = lidar_origins(records, i)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        np.testing.assert_array_equal(found[scene.index(i)], records.lidar2ego(i)[:3, 3])
        assert (transform_points(ego2global, found)[:, 2] > 1).all()


def test_depths_and_labels_by_hand():
    wall = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    wall[125] = 15  # x from 10.0 to 10.4 m
    wall[150] = 16  # behind it
    empty = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    empty[0, 0, 0] = 3
    found, nothing = cast_lidar([wall, empty], FREE, np.array([[0.0, 0, 1.84]]))
    directions = lidar_directions()
    ahead = np.flatnonzero((np.arange(14040) % 360 == 0) & (np.abs(directions[:, 2]) < 0.05))
    assert len(ahead) and (found.labels[ahead] == 15).all() and (nothing.labels[ahead] == FREE).all()
    np.testing.assert_allclose(found.depths[ahead] * directions[ahead, 0], 10.4, atol=0.05 * 0.4)
    x = np.unravel_index(found.voxels[ahead], wall.shape)[0]
    assert (x == 125).all() and found.depths.dtype == np.float32 and found.labels.dtype == np.uint8
    # above the grid, rays that go up never enter: the corner's label counts, 0.4 m behind
    above, _ = cast_lidar([empty, wall], FREE, np.array([[0.0, 0, 9]]))
    up = directions[:, 2] > 0
    assert up.any() and (above.labels[up] == 3).all() and (above.depths[up] == np.float32(-0.4)).all()


def test_origins_follow_one_another():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(OCC3D_GRID.shape) < 0.01, 4, FREE).astype(np.uint8)
    origins = rng.uniform([-39, -39, 0], [39, 39, 5], (3, 3))
    (together,) = cast_lidar([labels], FREE, origins)
    for k, origin in enumerate(origins):
        (alone,) = cast_lidar([labels], FREE, origin[None])
        np.testing.assert_array_equal(alone.voxels, together.voxels.reshape(3, -1)[k])
        np.testing.assert_array_equal(alone.depths, together.depths.reshape(3, -1)[k])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu():
    rng = np.random.default_rng(0)
    labels = [np.where(rng.random(OCC3D_GRID.shape) < d, 4, FREE).astype(np.uint8) for d in (0.01, 0.1)]
    origins = rng.uniform([-39, -39, -2], [39, 39, 8], (8, 3))
    for a, b in zip(*(cast_lidar(labels, FREE, origins, device=d) for d in ("cpu", "cuda")), strict=True):
        for name in ("labels", "depths", "voxels"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_measuring_leaves_the_threads_as_they_were():
    threads = torch.get_num_threads()
    assert measure_casting(samples=1) > 0
    assert torch.get_num_threads() == threads
