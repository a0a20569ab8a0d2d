"""Simulates lidar sweeps by casting rays at the solids and the ground. Compiled with numba.

The scanner is that of nuScenes (Caesar et al., CVPR 2020): 32 rings from -30.67 to +10.67 degrees, 1086 columns,
20 Hz.
"""

from __future__ import annotations

import math

import numpy as np

from bev_perception.synth.compiled import hot, kernel
from bev_perception.synth.ground import PAVEMENT, ROAD, Ground, edge_distance, kind_at
from bev_perception.synth.polygons import Poses, turned, turned_back
from bev_perception.synth.roads import KERB
from bev_perception.synth.solids import Solids

RINGS, COLUMNS = 32, 1086
ELEVATIONS = np.radians(np.linspace(-30.67, 10.67, RINGS))
#: m, range of the farthest and of the nearest return
MAX_RANGE, MIN_RANGE = 95.0, 1.0
#: m, standard deviation of the range noise, and the limit that it is clipped to
NOISE, NOISE_LIMIT = 0.01, 0.025
#: m, the range of a ray that hits nothing; the compiled code cannot use infinity
_NEVER = 1e6


def ray_directions() -> np.ndarray:
    """Return the directions of all rays, [COLUMNS, RINGS, 3] unit vectors in the lidar's frame."""
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
    """Return the points of a sweep, and the numbers of the objects that they lie on.

    The points are [n, 5] float32: x, y, z (m, in the lidar's frame), intensity 0..255, ring. The object numbers are
    [n], -1 for the ground. The last object, the ego car, returns no points.

    poses: of the parts of `solids`
    lidar2global: [4, 4]
    wet: wetness, 0..1; more returns are lost when it is wet
    """
    local = ray_directions()
    rays = np.ascontiguousarray(local.reshape(-1, 3) @ lidar2global[:3, :3].T).reshape(COLUMNS, RINGS, 3)
    ranges, owners, reflectances = cast(solids, poses, ground, lidar2global[:3, 3].copy(), rays)
    lost = 0.01 + 0.12 * wet
    dim = np.clip(1.1 - ranges / MAX_RANGE, 0.05, 1) * (0.4 + 0.6 * np.sqrt(reflectances))
    kept = (ranges < MAX_RANGE) & (ranges > MIN_RANGE) & (rng.random(ranges.shape) > lost) & (dim > 0.06)
    noisy = ranges + np.clip(rng.normal(0, NOISE, ranges.shape), -NOISE_LIMIT, NOISE_LIMIT)
    points = local * noisy[..., None]
    intensity = np.clip(255 * reflectances * np.exp(-ranges / 60) * rng.uniform(0.8, 1.2, ranges.shape), 0, 255)
    ring = np.broadcast_to(np.arange(RINGS), ranges.shape)
    table = np.concatenate([points, np.floor(intensity)[..., None], ring[..., None]], axis=-1)
    return table[kept].astype(np.float32), owners[kept]


@kernel
def cast(
    solids: Solids, poses: Poses, ground: Ground, origin: np.ndarray, rays: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cast rays from one point; return ranges, object numbers and reflectances, each [columns, rings].

    Ranges are in m, _NEVER for a ray that hits nothing. Object numbers are -1 for the ground.

    origin: [3] where the rays start, m in the world
    rays: [columns, rings, 3] unit vectors in the world; those of a column lie nearly in one vertical plane
    """
    columns, rings = rays.shape[:2]
    ranges = np.full((columns, rings), _NEVER)
    owners = np.full((columns, rings), -1)
    reflectances = np.zeros((columns, rings))
    first = math.atan2(rays[0, rings // 2, 1], rays[0, rings // 2, 0])
    step = 2 * math.pi / columns
    for o in range(len(solids.classes) - 1):
        for p in range(solids.object_parts[o], solids.object_parts[o + 1]):
            rotation, at, middle = poses.rotations[p], poses.translations[p], solids.part_middle[p]
            x, y, z = turned(rotation, middle[0], middle[1], middle[2])
            x, y, z = x + at[0] - origin[0], y + at[1] - origin[1], z + at[2] - origin[2]
            radius, level, squared = solids.part_radius[p], math.hypot(x, y), x * x + y * y + z * z
            if level - radius > MAX_RANGE:
                continue
            low, count = 0, columns
            if level > 1.05 * radius:
                reach = math.asin(min(radius / level, 1.0)) + 0.03
                low = math.floor((math.atan2(y, x) - reach - first) / step)
                count = min(int(2 * reach / step) + 2, columns)
            eye = turned_back(rotation, origin[0] - at[0], origin[1] - at[1], origin[2] - at[2])
            for k in range(count):
                c = (low + k) % columns
                for r in range(rings):
                    rx, ry, rz = rays[c, r, 0], rays[c, r, 1], rays[c, r, 2]
                    along = rx * x + ry * y + rz * z
                    if along < -radius or squared - along * along > radius * radius or along - radius > ranges[c, r]:
                        continue
                    t, face = _enter(solids, p, eye, turned_back(rotation, rx, ry, rz))
                    if face >= 0 and t < ranges[c, r]:
                        ranges[c, r], owners[c, r], reflectances[c, r] = t, o, solids.reflectances[face]
    for c in range(columns):
        for r in range(rings):
            t, reflectance = _ground_hit(ground, origin, rays[c, r, 0], rays[c, r, 1], rays[c, r, 2])
            if t < ranges[c, r]:
                ranges[c, r], owners[c, r], reflectances[c, r] = t, -1, reflectance
    return ranges, owners, reflectances


@hot
def _enter(
    solids: Solids, p: int, eye: tuple[float, float, float], ray: tuple[float, float, float]
) -> tuple[float, int]:
    """Return the range at which a ray enters a hull, and the face; face -1 for a miss (Cyrus and Beck, CGIP 1978).

    p: number of the hull's part
    eye, ray: origin (m) and direction of the ray in the object's frame
    """
    planes, enter, leave, face = solids.planes, 0.0, _NEVER, -1
    for f in range(solids.part_faces[p], solids.part_faces[p + 1]):
        slope = planes[f, 0] * ray[0] + planes[f, 1] * ray[1] + planes[f, 2] * ray[2]
        height = planes[f, 0] * eye[0] + planes[f, 1] * eye[1] + planes[f, 2] * eye[2] - planes[f, 3]
        if abs(slope) < 1e-12:
            if height > 0:
                return _NEVER, -1
            continue
        t = -height / slope
        if slope < 0:
            if t > enter:
                enter, face = t, f
        else:
            leave = min(leave, t)
        if enter > leave:
            return _NEVER, -1
    return enter, face


@hot
def _ground_hit(ground: Ground, origin: np.ndarray, rx: float, ry: float, rz: float) -> tuple[float, float]:
    """Return the range (m) at which a ray hits the ground, _NEVER if it does not, and the reflectance there."""
    if rz > -1e-3:
        return _NEVER, 0.0
    t_kerb, t_road = (KERB - origin[2]) / rz, -origin[2] / rz
    if t_kerb > MAX_RANGE:
        return _NEVER, 0.0
    t = t_kerb
    if edge_distance(ground, origin[0] + t * rx, origin[1] + t * ry) < 0:
        t = t_road
        if edge_distance(ground, origin[0] + t * rx, origin[1] + t * ry) >= 0:  # it hits the kerb's vertical face
            low, high = t_kerb, t_road
            for _ in range(12):
                t = 0.5 * (low + high)
                if edge_distance(ground, origin[0] + t * rx, origin[1] + t * ry) < 0:
                    low = t
                else:
                    high = t
    kind, _ = kind_at(ground, origin[0] + t * rx, origin[1] + t * ry)
    return t, 0.12 if kind == ROAD else 0.25 if kind == PAVEMENT else 0.35
