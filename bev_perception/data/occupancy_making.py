"""Make occupancy labels of the lidar scans and the boxes of a scene.

As in Occ3D (Tian et al., NeurIPS 2023) and OpenOccupancy (Wang et al., ICCV 2023), scans are gathered over a scene,
what has a box is carried along in it, and rays tell what is free. The ground between the rings of a lidar is filled
where measured ground is near; Occ3D reconstructs a mesh for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.occupancy_labels import UNKNOWN_LABEL, OccupancyLabels
from bev_perception.data.scene_scans import UNLABELLED
from bev_perception.geometry import invert_transform, transform_points
from bev_perception.ops.ray_casting import observed_voxels
from bev_perception.types import OCC3D_GRID

FREE = len(OCC3D_CLASSES) - 1
GROUND = OCC3D_CLASSES.index("driveable_surface")
#: classes of ground, which fill gaps of the ground
GROUNDS = tuple(OCC3D_CLASSES.index(n) for n in ("driveable_surface", "other_flat", "sidewalk", "terrain"))
#: m from a lidar, within which points are of the vehicle itself
OWN_VEHICLE = 2.5
#: m, added to each side of a box to collect its points: annotations are tight
BOX_MARGIN = 0.1
#: m; of the points of a scene that lie in one such cube, one is kept
THIN = 0.1
#: m above the ground up to which a point is ground, and m below it
GROUND_ABOVE, GROUND_BELOW = 0.25, 0.4
#: rise of the ground, m/m, that is not taken for a wall
SLOPE = 0.2
#: cells; the ground is filled up to so far from measured ground
GROUND_REACH = 4.0
#: cells with ground within 2 m, itself among them, that a cell needs: one that is more alone is of something else
ALONE = 3
#: scans whose rays tell what is free, and rays of each
RAY_SCANS, RAYS = 24, 8000
#: m; scans farther away from the vehicle tell nothing of its surroundings
RAY_REACH = 60.0
#: pixels of a 1600x900 image between the rays of a camera
PIXELS = 7


@dataclass(frozen=True)
class PlacedBox:
    """A box at some time.

    instance: number of the object
    label: index into OCC3D_CLASSES, or UNLABELLED for other objects
    box2global: [4, 4]
    size: [3], length, width, height, m
    """

    instance: int
    label: int
    box2global: np.ndarray
    size: np.ndarray


@dataclass(frozen=True)
class GatheredScene:
    """The points of a scene.

    static: [n, 3] float32, m in the global frame, of what has no box
    static_labels: [n] uint8
    objects: instance -> [m, 3] float32, m in its box
    origins: [s, 3], where the rays of each scan began, m in the global frame
    ends: of each scan [r, 3] float32, where its rays ended, m in the global frame
    """

    static: np.ndarray
    static_labels: np.ndarray
    objects: dict[int, np.ndarray]
    origins: np.ndarray
    ends: Sequence[np.ndarray]


def gather(
    scans: Iterable[tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray, Sequence[PlacedBox]]], seed: int = 0
) -> GatheredScene:
    """Gather the scans of a scene.

    scans: of each the points [n, 3] (m), their labels [n] or None, lidar2global, the origin of its rays (m, in the
        frame of the points), and all boxes at its time
    seed: of the choice of rays
    """
    rng = np.random.default_rng(seed)
    static, labels, origins, ends = [], [], [], []
    objects: dict[int, list[np.ndarray]] = {}
    for points, known, lidar2global, origin, boxes in scans:
        far = np.linalg.norm(points[:, :2] - origin[:2], axis=1) > OWN_VEHICLE
        points = points[far].astype(np.float64)
        of = np.full(len(points), UNLABELLED, np.uint8) if known is None else known[far]
        placed = transform_points(lidar2global, points)
        origins.append(transform_points(lidar2global, origin[None])[0])
        chosen = rng.permutation(len(placed))[:RAYS]
        ends.append(placed[chosen].astype(np.float32))
        left = np.ones(len(placed), bool)
        x, y = placed[:, 0].copy(), placed[:, 1].copy()
        for box in boxes:
            reach = np.linalg.norm(box.size) / 2 + BOX_MARGIN
            middle = box.box2global[:2, 3]
            near = np.flatnonzero(np.abs(x - middle[0]) < reach)
            near = near[np.abs(y[near] - middle[1]) < reach]
            local = transform_points(invert_transform(box.box2global), placed[near])
            inside = (np.abs(local) <= box.size / 2 + BOX_MARGIN).all(axis=1)
            # the ground under a box is not carried along
            inside &= local[:, 2] > -box.size[2] / 2 + BOX_MARGIN
            left[near[inside]] = False
            objects.setdefault(box.instance, []).append(local[inside].astype(np.float32))
        static.append(placed[left].astype(np.float32))
        labels.append(of[left])
    if not static:
        nothing = np.zeros((0, 3), np.float32)
        return GatheredScene(nothing, np.zeros(0, np.uint8), {}, np.zeros((0, 3)), [])
    everything, kinds = np.concatenate(static), np.concatenate(labels)
    kept = _thinned(everything, kinds)
    carried = {instance: np.concatenate(parts) for instance, parts in objects.items()}
    return GatheredScene(everything[kept], kinds[kept], carried, np.stack(origins), ends)


def _thinned(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the indices of one point in each cube of THIN m, one with a label if there is any."""
    if not len(points):
        return np.zeros(0, np.int64)
    cells = np.floor((points - points.min(axis=0)) / THIN).astype(np.int64)
    size = cells.max(axis=0) + 1
    keys = (cells[:, 0] * size[1] + cells[:, 1]) * size[2] + cells[:, 2]
    order = np.argsort(labels, kind="stable")  # UNLABELLED is last
    return order[np.unique(keys[order], return_index=True)[1]]


def make_labels(
    scene: GatheredScene,
    ego2global: np.ndarray,
    boxes: Sequence[PlacedBox],
    cameras: Sequence[tuple[np.ndarray, np.ndarray, tuple[int, int]]],
) -> OccupancyLabels:
    """Return the labels of a key frame.

    scene: its points
    ego2global: [4, 4], at the lidar's stamp
    boxes: at that time
    cameras: of each the intrinsics, sensor2ego at that time, and (width, height) in pixels
    """
    global2ego = invert_transform(ego2global)
    near = np.abs(scene.static[:, :2] - ego2global[:2, 3]).max(axis=1) < 60.0
    static = transform_points(global2ego, scene.static[near].astype(np.float64))
    semantics, instances = _static_voxels(static, scene.static_labels[near]), np.zeros(OCC3D_GRID.shape, np.int16)
    for box in boxes:
        cells = _cells(transform_points(global2ego @ box.box2global, scene.objects.get(box.instance, np.zeros((0, 3)))))
        semantics[cells] = box.label
        instances[cells] = 0 if box.label == UNKNOWN_LABEL else box.instance
    occupied = semantics != FREE
    seen = _lidar_rays(scene, ego2global, occupied)
    mask_lidar = seen | occupied
    views = [_camera_rays(*camera) for camera in cameras]
    origins, rays = (np.concatenate(parts) for parts in zip(*views, strict=True)) if views else (np.zeros((0, 3)),) * 2
    mask_camera = observed_voxels(occupied, OCC3D_GRID, origins, rays) & mask_lidar
    return OccupancyLabels(semantics, mask_lidar, mask_camera, instances)


def _cells(points: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the voxels of those points [n, 3] (m, ego frame) that lie in the grid, as an index."""
    voxels = np.floor((points - OCC3D_GRID.origin) / OCC3D_GRID.resolution).astype(np.int64)
    inside = ((voxels >= 0) & (voxels < OCC3D_GRID.shape)).all(axis=1)
    return tuple(voxels[inside].T)


def _static_voxels(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the semantics [X, Y, Z] of what has no box; UNKNOWN_LABEL where something without a label stands."""
    height, is_ground = _ground(points)
    of = labels.copy()
    of[is_ground & (of == UNLABELLED)] = GROUND
    semantics = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    _fill_ground(semantics, points[is_ground], of[is_ground], height)
    standing = ~is_ground
    semantics[_cells(points[standing & (of == UNLABELLED)])] = UNKNOWN_LABEL
    order = np.argsort(of[standing & (of != UNLABELLED)], kind="stable")
    known = points[standing & (of != UNLABELLED)][order]
    inside = _inside(known)
    semantics[_cells(known)] = of[standing & (of != UNLABELLED)][order][inside]
    return semantics


def _inside(points: np.ndarray) -> np.ndarray:
    voxels = np.floor((points - OCC3D_GRID.origin) / OCC3D_GRID.resolution)
    return ((voxels >= 0) & (voxels < OCC3D_GRID.shape)).all(axis=1)


def _ground(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the height [X, Y] of the ground (m, ego frame; NaN where none is near) and which points [n] lie on it.

    The lowest points of cells are ground where they rise no more than SLOPE from the lowest around them.
    """
    x, y = OCC3D_GRID.shape[:2]
    columns = np.floor((points[:, :2] - OCC3D_GRID.origin[:2]) / OCC3D_GRID.resolution).astype(np.int64)
    inside = ((columns >= 0) & (columns < (x, y))).all(axis=1) & (np.abs(points[:, 2]) < 3.0)
    flat = columns[inside, 0] * y + columns[inside, 1]
    lowest = np.full(x * y, np.inf)
    np.minimum.at(lowest, flat, points[inside, 2])
    lowest = lowest.reshape(x, y)
    # grey opening: what stands is cut off, from narrow to wide
    surface = np.where(np.isinf(lowest), 1e3, lowest)
    for width in (5, 11, 21, 41):
        around = ndimage.minimum_filter(surface, width, mode="nearest")
        opened = np.where(around > 1e2, -1e3, around)
        opened = ndimage.maximum_filter(opened, width, mode="nearest")
        high = surface > opened + SLOPE * width * OCC3D_GRID.resolution / 4 + 0.1
        surface = np.where(high & (surface < 1e2), 1e3, surface)
    known = surface < 1e2
    known &= ndimage.uniform_filter(known.astype(np.float64), 11, mode="constant") * 121 > ALONE + 0.5
    weight = ndimage.gaussian_filter(known.astype(np.float64), 1.5)
    value = ndimage.gaussian_filter(np.where(known, surface, 0.0), 1.5)
    distance = ndimage.distance_transform_edt(~known)
    height = np.where((distance <= GROUND_REACH) & (weight > 1e-6), value / np.maximum(weight, 1e-9), np.nan)
    height = np.where(known, surface, height)
    is_ground = np.zeros(len(points), bool)
    above = points[inside, 2] - height[columns[inside, 0], columns[inside, 1]]
    is_ground[inside] = (above < GROUND_ABOVE) & (above > -GROUND_BELOW)
    return height, is_ground


def _fill_ground(semantics: np.ndarray, points: np.ndarray, labels: np.ndarray, height: np.ndarray) -> None:
    """Fill the voxels of ground points, and those of the ground between them with the nearest label."""
    x, y, z = OCC3D_GRID.shape
    column_label = np.full((x, y), UNLABELLED, np.uint8)
    inside = _inside(points)
    cells = _cells(points)
    semantics[cells] = labels[inside]
    column_label[cells[:2]] = labels[inside]
    known = column_label != UNLABELLED
    if not known.any():
        return
    nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    filled = np.isfinite(height) & ~known
    level = np.floor((np.where(filled, height, 0.0) - OCC3D_GRID.origin[2]) / OCC3D_GRID.resolution).astype(np.int64)
    filled &= (level >= 0) & (level < z)
    at = np.nonzero(filled)
    semantics[(*at, level[filled])] = column_label[tuple(n[filled] for n in nearest)]


def _lidar_rays(scene: GatheredScene, ego2global: np.ndarray, occupied: np.ndarray) -> np.ndarray:
    """Return the mask [X, Y, Z] of voxels that rays of the nearest scans pass."""
    away = np.linalg.norm(scene.origins[:, :2] - ego2global[:2, 3], axis=1) if len(scene.origins) else np.zeros(0)
    nearest = [s for s in np.argsort(away, kind="stable") if away[s] < RAY_REACH]
    chosen = (
        nearest
        if len(nearest) <= RAY_SCANS
        else [nearest[k] for k in np.linspace(0, len(nearest) - 1, RAY_SCANS).astype(int)]
    )
    if not chosen:
        return np.zeros(OCC3D_GRID.shape, bool)
    global2ego = invert_transform(ego2global)
    starts = transform_points(
        global2ego, np.repeat(scene.origins[chosen], [len(scene.ends[s]) for s in chosen], axis=0)
    )
    ends = transform_points(global2ego, np.concatenate([scene.ends[s] for s in chosen]).astype(np.float64))
    return observed_voxels(occupied, OCC3D_GRID, starts, ends - starts)


def _camera_rays(
    intrinsics: np.ndarray, sensor2ego: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return origins and directions [r, 3] of rays through the pixels of an image."""
    width, height = size
    step = max(1.0, PIXELS * width / 1600)
    u, v = np.meshgrid(np.arange(0, width, step), np.arange(0, height, step))
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=1)
    rays = pixels @ (sensor2ego[:3, :3] @ np.linalg.inv(intrinsics)).T
    return np.broadcast_to(sensor2ego[:3, 3], rays.shape), rays
