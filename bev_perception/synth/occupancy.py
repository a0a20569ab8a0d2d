"""Occupancy labels in the format of Occ3D-nuScenes (Tian et al., NeurIPS 2023), from the same solids and ground.

Compiled with numba. As in labels made from lidar points, only the surfaces of objects are filled, one voxel thick:
a voxel is occupied if the surface of an object reaches into it, and free if it lies completely inside an object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.drive import NUSCENES_IMAGE_SIZE
from bev_perception.geometry import invert_transform
from bev_perception.rig.projection import rays_of
from bev_perception.synth.compiled import hot, kernel
from bev_perception.synth.ground import Ground, kind_at
from bev_perception.synth.polygons import Poses, turned
from bev_perception.synth.solids import MAX_FACES, Solids
from bev_perception.types import OCC3D_GRID, Calibration

FREE = len(OCC3D_CLASSES) - 1
#: classes below this one are things; where a thing and ground or scenery share a voxel, the thing takes it
_THINGS = OCC3D_CLASSES.index("driveable_surface")
_ORIGIN = np.array(OCC3D_GRID.origin)
_CELL = OCC3D_GRID.resolution
_SHAPE = OCC3D_GRID.shape
#: pixels of a 1600x900 image between the rays that determine what a camera sees
_PIXELS = 7


@dataclass(frozen=True)
class Labels:
    """Occupancy labels of one key frame, all [200, 200, 16] uint8, in the ego frame at the lidar's stamp.

    semantics: classes of Occ3D
    instances: object numbers from 1 on, the same for all voxels of a thing that has a box; 0 elsewhere
    mask_lidar: 1 where a lidar ray has passed or ended
    mask_camera: 1 where a camera ray has passed or ended
    """

    semantics: np.ndarray
    instances: np.ndarray
    mask_lidar: np.ndarray
    mask_camera: np.ndarray


def label(
    solids: Solids,
    poses: Poses,
    ground: Ground,
    present: np.ndarray,
    boxed: np.ndarray,
    ego2global: np.ndarray,
    lidar: tuple[np.ndarray, np.ndarray],
    cameras: list[tuple[np.ndarray, np.ndarray]],
) -> Labels:
    """Return the labels of a key frame.

    poses: of the parts of `solids`
    present: [O] bool, objects that are there
    boxed: [O] bool, objects that may have a box
    ego2global: [4, 4]
    lidar: origin [3] and points [n, 3] in the ego frame, m
    cameras: origins [3] (m) and directions [n, 3] of rays in the ego frame
    """
    global2ego = invert_transform(ego2global)
    semantics, owners = fill(solids, poses, ground, present, ego2global, global2ego)
    things = (owners >= 0) & (semantics < _THINGS) & boxed[np.maximum(owners, 0)]
    numbers = np.zeros(len(solids.classes), np.uint8)
    present = np.unique(owners[things])[:255]
    numbers[present] = np.arange(1, len(present) + 1)
    instances = np.where(things, numbers[np.maximum(owners, 0)], 0).astype(np.uint8)
    mask_lidar, mask_camera = np.zeros(_SHAPE, np.uint8), np.zeros(_SHAPE, np.uint8)
    origin, points = lidar
    _see(semantics, mask_lidar, np.ascontiguousarray(origin), np.ascontiguousarray(points - origin), False)
    for origin, rays in cameras:
        _see(semantics, mask_camera, np.ascontiguousarray(origin), np.ascontiguousarray(rays), True)
    return Labels(semantics, instances, mask_lidar, mask_camera)


def camera_rays(calibration: Calibration, rotation: np.ndarray) -> np.ndarray:
    """Return the directions [n, 3] of rays spread over an image.

    calibration: of the camera
    rotation: [3, 3] from the camera's frame to the frame of the result
    """
    width, height = calibration.width, calibration.height
    step = max(1.0, _PIXELS * width / NUSCENES_IMAGE_SIZE[0])
    u, v = np.meshgrid(np.arange(0, width, step), np.arange(0, height, step))
    if calibration.distortion:
        rays = rays_of(calibration, np.stack([u.ravel(), v.ravel()], axis=1)) @ rotation.T
        return rays[np.isfinite(rays).all(1)]
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=1)
    rays = pixels @ (rotation @ np.linalg.inv(calibration.intrinsics)).T
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


@kernel
def fill(
    solids: Solids,
    poses: Poses,
    ground: Ground,
    present: np.ndarray,
    ego2global: np.ndarray,
    global2ego: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes (uint8) and the object numbers (int16, -1: none) of all voxels."""
    semantics = np.full(_SHAPE, FREE, np.uint8)
    owners = np.full(_SHAPE, -1, np.int16)
    planes = np.empty((MAX_FACES, 5))
    _fill_ground(semantics, ground, ego2global)
    # scenery first: in a voxel that both reach into, the thing overwrites it
    for things in (False, True):
        for o in range(len(solids.classes) - 1):
            if not present[o] or (solids.classes[o] < _THINGS) != things:
                continue
            for p in range(solids.object_parts[o], solids.object_parts[o + 1]):
                _fill_part(semantics, owners, solids, poses, o, p, global2ego, planes)
    return semantics, owners


@hot
def _fill_ground(semantics: np.ndarray, ground: Ground, ego2global: np.ndarray) -> None:
    r = ego2global
    for i in range(_SHAPE[0]):
        for j in range(_SHAPE[1]):
            x, y = _ORIGIN[0] + (i + 0.5) * _CELL, _ORIGIN[1] + (j + 0.5) * _CELL
            gx, gy = r[0, 0] * x + r[0, 1] * y + r[0, 3], r[1, 0] * x + r[1, 1] * y + r[1, 3]
            kind, height = kind_at(ground, gx, gy)
            z = (height - r[2, 3] - r[2, 0] * x - r[2, 1] * y) / r[2, 2]
            k = math.floor((z - _ORIGIN[2]) / _CELL)
            if 0 <= k < _SHAPE[2]:
                semantics[i, j, k] = kind


@hot
def _cells(
    solids: Solids, poses: Poses, p: int, global2ego: np.ndarray, axis: int, origin: float, count: int
) -> tuple[int, int]:
    """Return the range of cells along an axis that a part reaches into: the first, and the one after the last."""
    low, high, at, r = 1e9, -1e9, poses.translations[p], poses.rotations[p]
    for v in range(solids.part_vertices[p], solids.part_vertices[p + 1]):
        x, y, z = turned(r, solids.vertices[v, 0], solids.vertices[v, 1], solids.vertices[v, 2])
        x, y, z = x + at[0], y + at[1], z + at[2]
        place = global2ego[axis, 0] * x + global2ego[axis, 1] * y + global2ego[axis, 2] * z + global2ego[axis, 3]
        low, high = min(low, place), max(high, place)
    return max(0, math.floor((low - origin) / _CELL)), min(count, math.floor((high - origin) / _CELL) + 1)


@kernel
def _fill_part(
    semantics: np.ndarray,
    owners: np.ndarray,
    solids: Solids,
    poses: Poses,
    o: int,
    p: int,
    global2ego: np.ndarray,
    planes: np.ndarray,
) -> None:
    """Fill the voxels that a hull's surface reaches into; free those completely inside it.

    A voxel is outside a hull if it lies beyond one of the hull's planes. Near sharp edges this test also fills some
    voxels that the hull does not reach.

    planes: [MAX_FACES, 5], scratch memory that is overwritten
    """
    i0, i1 = _cells(solids, poses, p, global2ego, 0, _ORIGIN[0], _SHAPE[0])
    j0, j1 = _cells(solids, poses, p, global2ego, 1, _ORIGIN[1], _SHAPE[1])
    k0, k1 = _cells(solids, poses, p, global2ego, 2, _ORIGIN[2], _SHAPE[2])
    if i0 >= i1 or j0 >= j1 or k0 >= k1:
        return
    at, r, start = poses.translations[p], poses.rotations[p], solids.part_faces[p]
    count = solids.part_faces[p + 1] - start
    for f in range(count):
        plane = solids.planes[start + f]
        nx, ny, nz = turned(r, plane[0], plane[1], plane[2])
        offset = plane[3] + nx * at[0] + ny * at[1] + nz * at[2]
        nx, ny, nz = turned(global2ego, nx, ny, nz)
        offset += nx * global2ego[0, 3] + ny * global2ego[1, 3] + nz * global2ego[2, 3]
        planes[f, 0], planes[f, 1], planes[f, 2], planes[f, 3] = nx, ny, nz, offset
        planes[f, 4] = 0.5 * _CELL * (abs(nx) + abs(ny) + abs(nz))  # how far a voxel reaches along the normal
    for i in range(i0, i1):
        for j in range(j0, j1):
            for k in range(k0, k1):
                x, y, z = _ORIGIN[0] + (i + 0.5) * _CELL, _ORIGIN[1] + (j + 0.5) * _CELL, _ORIGIN[2] + (k + 0.5) * _CELL
                outside, deep = False, True
                for f in range(count):
                    distance = planes[f, 0] * x + planes[f, 1] * y + planes[f, 2] * z - planes[f, 3]
                    if distance > planes[f, 4] - 1e-6:
                        outside = True
                        break
                    if distance > -planes[f, 4] - 1e-6:
                        deep = False
                if outside:
                    continue
                if deep:
                    semantics[i, j, k], owners[i, j, k] = FREE, -1
                else:
                    semantics[i, j, k], owners[i, j, k] = solids.classes[o], o


@kernel
def _see(semantics: np.ndarray, mask: np.ndarray, origin: np.ndarray, rays: np.ndarray, endless: bool) -> None:
    """Mark the voxels that rays pass through.

    Goes from voxel to voxel as in Amanatides and Woo, Eurographics 1987.

    origin: [3] m
    rays: [n, 3] from the origin, m
    endless: whether a ray goes on to the first occupied voxel; else it ends at its own length
    """
    cell, step = np.empty(3, np.int64), np.empty(3, np.int64)
    t_next, t_step = np.empty(3), np.empty(3)
    for n in range(len(rays)):
        length = math.sqrt(rays[n, 0] ** 2 + rays[n, 1] ** 2 + rays[n, 2] ** 2)
        limit = 120.0 if endless else length + 0.02
        for a in range(3):
            d = rays[n, a] / length
            place = (origin[a] - _ORIGIN[a]) / _CELL
            cell[a] = math.floor(place)
            step[a] = 1 if d > 0 else -1
            t_step[a] = _CELL / abs(d) if abs(d) > 1e-9 else 1e9
            rest = cell[a] + 1 - place if d > 0 else place - cell[a]
            t_next[a] = rest * t_step[a] if abs(d) > 1e-9 else 1e9
        t = 0.0
        while t < limit:
            i, j, k = cell[0], cell[1], cell[2]
            if not (0 <= i < _SHAPE[0] and 0 <= j < _SHAPE[1] and 0 <= k < _SHAPE[2]):
                break
            mask[i, j, k] = 1
            if endless and semantics[i, j, k] != FREE:
                break
            a = 0 if t_next[0] < t_next[1] else 1
            a = a if t_next[a] < t_next[2] else 2
            t = t_next[a]
            cell[a] += step[a]
            t_next[a] += t_step[a]
