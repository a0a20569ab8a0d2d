"""The lidar's rays that occupancy is judged by: Liu et al., ECCV 2024, section 4, with the details of its code.

Rays are cast through prediction and truth from the positions of the lidar in the key frames of the scene. Only the
first surface that a ray hits counts, so a prediction gains nothing from thick surfaces.
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

#: rows of rays: the lowest GROUND_ROWS hit the ground at 1, 2, ... times the lidar's height from it; the others follow
#: at the last interval, up to this pitch (rad)
GROUND_ROWS, HIGHEST_PITCH = 10, 0.21
#: m, largest x and y in the ego frame of an origin that is used
ORIGIN_REACH = 39.0
#: the most origins of a key frame; of more, evenly spaced ones are used
MAX_ORIGINS = 8


@dataclass(frozen=True)
class LidarHits:
    """What each ray hits in a grid.

    labels: [R] uint8, class of the voxel
    depths: [R] float32, m, where the ray leaves the voxel; may be negative, see cast_rays
    voxels: [R] int64, flat index of the voxel
    """

    labels: np.ndarray
    depths: np.ndarray
    voxels: np.ndarray


def lidar_directions() -> np.ndarray:
    """Return [14040, 3] float32: 39 rows of rays, from 45 degrees down to 12.5 degrees up, with a ray every degree."""
    pitches = [np.arctan(k + 1) - np.pi / 2 for k in range(GROUND_ROWS)]
    interval = pitches[-1] - pitches[-2]
    while pitches[-1] < HIGHEST_PITCH:
        pitches.append(pitches[-1] + interval)
    pitch, azimuth = np.meshgrid(pitches, np.deg2rad(np.arange(360.0)), indexing="ij")
    rays = [np.cos(pitch) * np.cos(azimuth), np.cos(pitch) * np.sin(azimuth), np.sin(pitch)]
    return np.stack(rays, axis=-1).reshape(-1, 3).astype(np.float32)


def lidar_origins(records: Records, i: int) -> np.ndarray:
    """Return [n, 3] float64, m: where the lidar is in each key frame of the scene, in the ego frame of key frame i."""
    scene = np.flatnonzero(np.asarray(records.scenes) == records.scenes[i])
    lidar2global = np.stack([records.lidar2global(j) for j in scene])
    return origins_in_ego(lidar2global, int(np.flatnonzero(scene == i)[0]), records.lidar2ego(i))


def origins_in_ego(lidar2global: np.ndarray, i: int, lidar2ego: np.ndarray) -> np.ndarray:
    """Return the origins [n, 3] of the rays of frame i, m, in its ego frame.

    lidar2global: [F, 4, 4], of the key frames of a scene in order of time
    i: the frame
    lidar2ego: [4, 4], of frame i
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
    """Cast the R = n * 14040 lidar rays through several grids in one pass; rays are in the order of the origins.

    Points, resolution and depths are rounded to float32, as in the published evaluation.

    semantics: grids of labels [X, Y, Z] uint8
    free: label of free space
    origins: [n, 3], m, in the frame of the grid
    grid: where the voxels are
    device: where rays are cast
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
    """Return how many samples (8 origins, 112,320 rays, prediction and truth) one core casts in a second.

    The scene is synthetic: a road between walls, with cars; the prediction is the truth shifted by a voxel, with holes.
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
