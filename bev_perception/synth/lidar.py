"""Lidar sweeps by casting rays at the solids and the ground. Compiled with numba.

The scanner is nuScenes' (Caesar et al., CVPR 2020): 32 rings from -30.67 to +10.67 degrees, 1086 columns, 20 Hz.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from bev_perception.synth.ground import PAVEMENT, ROAD, Ground, edge_distance, kind_at
from bev_perception.synth.rasterizer import Poses
from bev_perception.synth.roads import KERB
from bev_perception.synth.solids import Solids

RINGS, COLUMNS = 32, 1086
ELEVATIONS = np.radians(np.linspace(-30.67, 10.67, RINGS))
#: m, the farthest and the nearest return
MAX_RANGE, MIN_RANGE = 95.0, 1.0
#: m, standard deviation of a range, and its limit
NOISE, NOISE_LIMIT = 0.01, 0.025
_OWN_CAR = 3.5  # m, returns from the car itself are not made


def ray_directions() -> np.ndarray:
    """Return [COLUMNS, RINGS, 3] unit vectors in the lidar's frame."""
    azimuth = 2 * np.pi * np.arange(COLUMNS) / COLUMNS
    c = np.cos(ELEVATIONS)
    return np.stack(
        [
            np.cos(azimuth)[:, None] * c,
            np.sin(azimuth)[:, None] * c,
            np.broadcast_to(np.sin(ELEVATIONS), (COLUMNS, RINGS)),
        ],
        axis=-1,
    )


def sweep(
    solids: Solids, poses: Poses, ground: Ground, lidar2global: np.ndarray, wet: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the points [n, 5] float32 x, y, z (m, in the lidar's frame), intensity 0..255, ring; and whose they are.

    The owners [n] are numbers of objects, -1 for the ground; the last object, the ego car, returns nothing.
    """
    local = ray_directions()
    rays = np.ascontiguousarray(local.reshape(-1, 3) @ lidar2global[:3, :3].T).reshape(COLUMNS, RINGS, 3)
    ranges, owners, reflectances = cast(solids, poses, ground, lidar2global[:3, 3].copy(), rays)
    met = np.isfinite(ranges)
    ranges = np.where(met, ranges, 0.0)
    lost = 0.01 + 0.12 * wet
    dim = np.clip(1.1 - ranges / MAX_RANGE, 0.05, 1) * (0.4 + 0.6 * np.sqrt(reflectances))
    kept = met & (ranges < MAX_RANGE) & (ranges > MIN_RANGE) & (rng.random(ranges.shape) > lost) & (dim > 0.06)
    noisy = ranges + np.clip(rng.normal(0, NOISE, ranges.shape), -NOISE_LIMIT, NOISE_LIMIT)
    points = local * noisy[..., None]
    intensity = np.clip(255 * reflectances * np.exp(-ranges / 60) * rng.uniform(0.8, 1.2, ranges.shape), 0, 255)
    ring = np.broadcast_to(np.arange(RINGS), ranges.shape)
    table = np.concatenate([points, np.floor(intensity)[..., None], ring[..., None]], axis=-1)
    return table[kept].astype(np.float32), owners[kept]


@njit(cache=True)
def cast(
    solids: Solids, poses: Poses, ground: Ground, origin: np.ndarray, rays: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ranges (m, inf for none), owners (-1: ground) and reflectances [columns, rings] of rays from one point.

    rays: [columns, rings, 3] unit vectors in the world; those of a column lie in one upright plane, nearly.
    """
    columns, rings = rays.shape[:2]
    ranges = np.full((columns, rings), np.inf)
    owners = np.full((columns, rings), -1)
    reflectances = np.zeros((columns, rings))
    azimuths = np.empty(columns)
    for c in range(columns):
        azimuths[c] = math.atan2(rays[c, rings // 2, 1], rays[c, rings // 2, 0])
    step = 2 * math.pi / columns
    first = azimuths[0]
    for o in range(len(solids.classes) - 1):
        for p in range(solids.object_parts[o], solids.object_parts[o + 1]):
            middle = poses.rotations[p] @ solids.part_middle[p] + poses.translations[p] - origin
            radius = solids.part_radius[p]
            level = math.hypot(middle[0], middle[1])
            if level - radius > MAX_RANGE:
                continue
            low, count = 0, columns
            if level > 1.05 * radius:
                reach = math.asin(min(radius / level, 1.0)) + 0.03
                low = math.floor((math.atan2(middle[1], middle[0]) - reach - first) / step)
                count = min(int(2 * reach / step) + 2, columns)
            local_origin = poses.rotations[p].T @ (origin - poses.translations[p])
            for k in range(count):
                c = (low + k) % columns
                for r in range(rings):
                    ray = rays[c, r]
                    along = ray[0] * middle[0] + ray[1] * middle[1] + ray[2] * middle[2]
                    squared = middle[0] ** 2 + middle[1] ** 2 + middle[2] ** 2
                    if along < -radius or squared - along * along > radius * radius or along - radius > ranges[c, r]:
                        continue
                    t, face = _enter(solids, p, local_origin, poses.rotations[p].T @ ray)
                    if face >= 0 and t < ranges[c, r]:
                        ranges[c, r], owners[c, r] = t, o
                        reflectances[c, r] = solids.reflectances[face]
    for c in range(columns):
        for r in range(rings):
            t, reflectance = _ground_hit(ground, origin, rays[c, r])
            if t < ranges[c, r]:
                ranges[c, r], owners[c, r], reflectances[c, r] = t, -1, reflectance
                if math.hypot(rays[c, r, 0] * t, rays[c, r, 1] * t) < _OWN_CAR and r < 8:
                    ranges[c, r] = np.inf
    return ranges, owners, reflectances


@njit(cache=True)
def _enter(solids: Solids, p: int, origin: np.ndarray, ray: np.ndarray) -> tuple[float, int]:
    """Return where a ray enters a hull and through which face, -1 if it does not (Cyrus and Beck, CGIP 1978)."""
    enter, leave, face = 0.0, np.inf, -1
    for f in range(solids.part_faces[p], solids.part_faces[p + 1]):
        plane = solids.planes[f]
        slope = plane[0] * ray[0] + plane[1] * ray[1] + plane[2] * ray[2]
        height = plane[0] * origin[0] + plane[1] * origin[1] + plane[2] * origin[2] - plane[3]
        if abs(slope) < 1e-12:
            if height > 0:
                return np.inf, -1
            continue
        t = -height / slope
        if slope < 0:
            if t > enter:
                enter, face = t, f
        else:
            leave = min(leave, t)
        if enter > leave:
            return np.inf, -1
    return enter, face


@njit(cache=True)
def _ground_hit(ground: Ground, origin: np.ndarray, ray: np.ndarray) -> tuple[float, float]:
    """Return the range at which a ray meets the ground, inf for none, and the reflectance there."""
    if ray[2] > -1e-3:
        return np.inf, 0.0
    t_kerb, t_road = (KERB - origin[2]) / ray[2], -origin[2] / ray[2]
    if t_kerb > MAX_RANGE:
        return np.inf, 0.0
    x, y = origin[0] + t_kerb * ray[0], origin[1] + t_kerb * ray[1]
    t = t_kerb
    if edge_distance(ground, x, y) < 0:
        t = t_road
        if edge_distance(ground, origin[0] + t * ray[0], origin[1] + t * ray[1]) >= 0:  # the kerb's face lies between
            low, high = t_kerb, t_road
            for _ in range(12):
                t = 0.5 * (low + high)
                if edge_distance(ground, origin[0] + t * ray[0], origin[1] + t * ray[1]) < 0:
                    low = t
                else:
                    high = t
    kind, _ = kind_at(ground, origin[0] + t * ray[0], origin[1] + t * ray[1])
    reflectance = 0.12 if kind == ROAD else 0.25 if kind == PAVEMENT else 0.35
    return t, reflectance
