"""The lidar's rays that occupancy is judged by: Liu et al., ECCV 2024, section 4, with the details of its code.

A prediction is seen as a lidar would see it, from where the lidar was in the key frames of the scene: behind the first
surface nothing counts, so that thick surfaces gain nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bev_perception.data.records import Records
from bev_perception.geometry import invert_transform
from bev_perception.ops.ray_casting import cast_rays
from bev_perception.types import OCC3D_GRID, VoxelGrid

#: of the lidar's rows of rays: the lowest meet the ground 1, 2, ... times its height away, the others go on at the last
#: interval up to this pitch (rad)
GROUND_ROWS, HIGHEST_PITCH = 10, 0.21
#: m in the ego frame along x and y, within which origins count
ORIGIN_REACH = 39.0
#: origins of a key frame at most, evenly spread over those there are
MAX_ORIGINS = 8


@dataclass(frozen=True)
class LidarHits:
    """What each ray meets in one grid.

    labels: [R] uint8.  depths: [R] float32 m, where the ray leaves the voxel; negative ones are meant, see cast_rays.
    voxels: [R] int64, flat indices.
    """

    labels: np.ndarray
    depths: np.ndarray
    voxels: np.ndarray


def lidar_directions() -> np.ndarray:
    """Return [14040, 3] float32: 39 rows of rays from 45 degrees down to 12.5 degrees up, in each one every degree."""
    pitches = [np.arctan(k + 1) - np.pi / 2 for k in range(GROUND_ROWS)]
    interval = pitches[-1] - pitches[-2]
    while pitches[-1] < HIGHEST_PITCH:
        pitches.append(pitches[-1] + interval)
    pitch, azimuth = np.meshgrid(pitches, np.deg2rad(np.arange(360.0)), indexing="ij")
    rays = [np.cos(pitch) * np.cos(azimuth), np.cos(pitch) * np.sin(azimuth), np.sin(pitch)]
    return np.stack(rays, axis=-1).reshape(-1, 3).astype(np.float32)


def lidar_origins(records: Records, i: int) -> np.ndarray:
    """Return [n, 3] float64, m: where the lidar was in the key frames of i's scene, in key frame i's ego frame."""
    scene = np.flatnonzero(np.asarray(records.scenes) == records.scenes[i])
    lidar2global = np.stack([records.lidar2global(j) for j in scene])
    return origins_in_ego(lidar2global, int(np.flatnonzero(scene == i)[0]), records.lidar2ego(i))


def origins_in_ego(lidar2global: np.ndarray, i: int, lidar2ego: np.ndarray) -> np.ndarray:
    """Return the origins [n, 3] that frame i's rays start from.

    lidar2global: [F, 4, 4], of a scene's key frames in the order of time.  lidar2ego: [4, 4], of frame i.
    """
    in_lidar = (invert_transform(lidar2global[i]) @ lidar2global)[:, :3, 3].astype(np.float32)
    in_lidar[i] = 0
    origins = in_lidar.astype(np.float64) @ lidar2ego[:3, :3].T + lidar2ego[:3, 3]
    origins = origins[(np.abs(origins[:, :2]) < ORIGIN_REACH).all(axis=1)]
    if len(origins) <= MAX_ORIGINS:
        return origins
    return origins[np.rint(np.linspace(0, len(origins) - 1, MAX_ORIGINS)).astype(int)]


def cast_lidar(
    semantics: Sequence[np.ndarray],
    free: int,
    origins: np.ndarray,
    grid: VoxelGrid = OCC3D_GRID,
    device: torch.device | str = "cpu",
) -> list[LidarHits]:
    """Cast the lidar's rays from each origin through grids of labels [X, Y, Z] uint8, in one pass.

    origins: [n, 3] m, in the grid's frame.  free: the label of free space.  The R = n * 14040 rays are in the order of
    the origins. Points, resolution and depths are rounded to float32 as in the published evaluation.
    """
    start, along = _rays_in_voxels(origins, grid)
    labels = torch.from_numpy(np.stack(semantics)).to(device)  # [G, X, Y, Z]
    hits = cast_rays(labels != free, torch.from_numpy(start).to(device), torch.from_numpy(along).to(device))
    met = labels.flatten(1).gather(1, hits.voxels)
    depths = hits.depths.float() * torch.tensor(grid.resolution, dtype=torch.float32, device=device)
    arrays = (a.cpu().numpy() for a in (met, depths, hits.voxels))
    return [LidarHits(*of_grid) for of_grid in zip(*arrays, strict=True)]


def _rays_in_voxels(origins: np.ndarray, grid: VoxelGrid) -> tuple[np.ndarray, np.ndarray]:
    """Return origins and unit directions [n * 14040, 3] float64 in voxels, of points that are rounded to float32."""
    size = np.float64(np.float32(grid.resolution))
    ends = lidar_directions().astype(np.float64) + origins[:, None]  # [n, 14040, 3]
    start = ((origins - grid.origin) / size).astype(np.float32).astype(np.float64)
    along = ((ends - grid.origin) / size).astype(np.float32).astype(np.float64) - start[:, None]
    along /= np.linalg.norm(along, axis=2, keepdims=True)
    return start.repeat(along.shape[1], axis=0), along.reshape(-1, 3)


def measure_casting(samples: int = 20) -> float:
    """Return how many samples (8 origins, 112,320 rays, prediction and truth at once) one core casts in a second.

    The scene is made up: a road between walls, with cars; the prediction is the truth a voxel off, with holes.
    """
    rng = np.random.default_rng(0)
    truth = np.full(OCC3D_GRID.shape, 17, np.uint8)
    truth[:, :, :3] = 11
    truth[:, [10, 11, 188, 189], :12] = 15
    for x, y in rng.integers(15, 175, (40, 2)):
        truth[x : x + 11, y : y + 5, 3:7] = 4
    prediction = np.roll(truth, 1, axis=0)
    prediction[rng.random(prediction.shape) < 0.3] = 17
    origins = np.stack([np.linspace(-30, 30, MAX_ORIGINS), np.zeros(MAX_ORIGINS), np.full(MAX_ORIGINS, 1.84)], axis=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cast_lidar([prediction, truth], 17, origins)  # compiles
        start = time.process_time()  # of the core, whatever else the machine does
        for _ in range(samples):
            cast_lidar([prediction, truth], 17, origins)
        return samples / (time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
