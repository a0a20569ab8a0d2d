"""Costmap for a planner from an occupancy: which columns of voxels are obstacles, free, or not observed."""

from __future__ import annotations

import functools
import math
from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from bev_perception.geometry import intrinsics_4x4, invert_transform
from bev_perception.ops.ray_casting import observed_voxels
from bev_perception.sensing.lens import OUTSIDE, undistortion_map
from bev_perception.strict import UserError
from bev_perception.types import Calibration, Frame, Occupancy, VoxelGrid

#: values of nav_msgs/OccupancyGrid
UNKNOWN, FREE, OBSTACLE = -1, 0, 100
#: s for which a costmap, and what is drawn, stands without a newer one
OUTPUT_LIFETIME = 2.0
#: share of a voxel's height that must lie between the two heights for the voxel to count; less is rounding error
TOUCH = 1e-3
#: pixels; side of the squares for which a lens mask stores whether the lens shows them
MASK_STEP = 8
#: lens masks in the cache; more than any rig has cameras
MASKS_KEPT = 32


@dataclass(frozen=True)
class CostmapSettings:
    """What counts as an obstacle.

    min_height: m above base_link; the vehicle can drive over anything lower
    max_height: m above base_link; the vehicle can drive under anything higher
    free_classes: classes that are ground at any height; all others are obstacles
    """

    min_height: float = 0.2
    max_height: float = 2.0
    free_classes: tuple[str, ...] = ("driveable_surface", "other_flat", "sidewalk", "terrain")

    def __post_init__(self) -> None:
        """Check that the heights are in order."""
        if not self.min_height < self.max_height:
            raise UserError(
                f"costmap_min_height is {self.min_height} m, costmap_max_height {self.max_height} m; "
                "the first must be the lower one"
            )

    def check(self, class_names: tuple[str, ...], grid: VoxelGrid) -> None:
        """Raise UserError for classes that a variant does not have, and for heights outside of its grid."""
        names = class_names[:-1]  # free space is not ground
        unknown = [name for name in self.free_classes if name not in names]
        if unknown:
            raise UserError(
                f"costmap_free_classes holds {', '.join(map(repr, unknown))}; the classes are {', '.join(names)}"
            )
        layers = self.layers(grid)
        if layers.start == layers.stop:
            low, high = grid.origin[2], grid.origin[2] + grid.resolution * grid.shape[2]
            raise UserError(
                f"costmap_min_height to costmap_max_height is {self.min_height} to {self.max_height} m; "
                f"the grid reaches from {low:g} to {high:g} m above base_link"
            )

    def layers(self, grid: VoxelGrid) -> slice:
        """Return the grid's layers along z that lie at least partly between the heights."""
        low, high = ((height - grid.origin[2]) / grid.resolution for height in (self.min_height, self.max_height))
        first, stop = math.floor(low + TOUCH), math.ceil(high - TOUCH)
        return slice(min(max(first, 0), grid.shape[2]), min(max(stop, 0), grid.shape[2]))


def costmap(occupancy: Occupancy, frame: Frame, missing: Container[str], settings: CostmapSettings) -> np.ndarray:
    """Return the costmap [X, Y] int8: OBSTACLE, FREE or UNKNOWN for every column of voxels.

    occupancy: in base_link at the frame's stamp
    frame: its cameras observed the voxels
    missing: names of the cameras that were not used
    settings: what counts as an obstacle

    A column with anything but ground between the heights is an obstacle. Any other column is free if a camera sees
    down to its ground, see `ground_voxels`, and unknown otherwise: rays that pass high above a column do not make it
    free, since something may be hidden there, for example behind a car.

    Raises UserError for settings that do not fit the occupancy.
    """
    grid = occupancy.grid
    settings.check(occupancy.class_names, grid)
    passable = ground(occupancy, settings)
    passable[occupancy.free] = True
    obstacle = ~passable[occupancy.semantics[..., settings.layers(grid)]].all(axis=2)

    voxels = ground_voxels(occupancy, settings)
    origins, directions = camera_rays(frame, missing, np.array(grid.origin) + grid.resolution * (voxels + 0.5))
    observed = observed_voxels(occupancy.occupied, grid, origins, directions)
    free = observed[tuple(voxels.T)].reshape(obstacle.shape)
    return np.where(obstacle, OBSTACLE, np.where(free, FREE, UNKNOWN)).astype(np.int8)


def ground_voxels(occupancy: Occupancy, settings: CostmapSettings) -> np.ndarray:
    """Return for each column the lowest voxel between the heights that is above the ground, [X * Y, 3] int64.

    It is the voxel above the column's highest one of a free class, but at least the lowest between the heights (if the
    ground is below them or unknown), and at most the highest (if the ground fills the column). A camera must see it for
    the column to be free.
    """
    layers = settings.layers(occupancy.grid)
    below = ground(occupancy, settings)[occupancy.semantics[..., : layers.stop]]  # [X, Y, layers]
    above_ground = np.where(below.any(axis=2), layers.stop - below[..., ::-1].argmax(axis=2), 0)  # [X, Y]
    k = np.clip(above_ground, layers.start, layers.stop - 1)
    i, j = np.indices(k.shape)
    return np.stack([i, j, k], axis=-1).reshape(-1, 3)


def ground(occupancy: Occupancy, settings: CostmapSettings) -> np.ndarray:
    """Return [classes] bool, whether each class is ground."""
    return np.isin(occupancy.class_names, settings.free_classes)


def camera_rays(frame: Frame, missing: Container[str], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rays from each camera to the points that its image shows, as origins and directions [R, 3].

    frame: its cameras, each at its pose at its own stamp
    missing: names of the cameras that were not used
    points: [n, 3], m

    Points, origins and directions are in base_link at the frame's stamp. A camera shows a point if the point is in its
    undistorted image at the original size, before any crop.
    """
    homogeneous = np.vstack([points.T, np.ones(len(points))])  # [4, n]
    origins, directions = [np.empty((0, 3))], [np.empty((0, 3))]
    for view in frame.views:
        if view is None or view.image.camera in missing:
            continue
        sensor2ego = invert_transform(frame.ego2global) @ view.ego2global @ view.sensor2ego
        ego2image = intrinsics_4x4(view.calibration.intrinsics) @ invert_transform(sensor2ego)
        rays = points[_shown(view.calibration, ego2image[:3] @ homogeneous)] - sensor2ego[:3, 3]
        directions.append(rays)
        origins.append(np.broadcast_to(sensor2ego[:3, 3], rays.shape))
    return np.concatenate(origins), np.concatenate(directions)


def _shown(calibration: Calibration, scaled: np.ndarray) -> np.ndarray:
    """Return the indices of the points that are in the image; scaled: [3, n], depth-scaled pixels u*d, v*d, d."""
    u, v, depth = scaled
    inside = (u > -0.5 * depth) & (u < (calibration.width - 0.5) * depth)  # never true for a negative depth
    inside &= (v > -0.5 * depth) & (v < (calibration.height - 0.5) * depth)
    shown = np.flatnonzero(inside)
    if not calibration.distortion:
        return shown
    mask = _lens_mask(
        tuple(calibration.intrinsics.ravel().tolist()),
        calibration.distortion_model,
        calibration.distortion,
        (calibration.width, calibration.height),
    )
    column, row = ((scaled[:2, shown] / depth[shown] + 0.5) // MASK_STEP).astype(np.int64)
    return shown[mask[row, column]]


@functools.lru_cache(MASKS_KEPT)
def _lens_mask(
    intrinsics: tuple[float, ...], model: str, distortion: tuple[float, ...], size: tuple[int, int]
) -> np.ndarray:
    """Return [h, w] bool, whether the distorted image shows the middle of each square of the undistorted image.

    intrinsics: [9], the rows of the camera matrix
    model: distortion model, see types.Calibration
    distortion: coefficients, see types.Calibration
    size: (width, height) of both images, pixels; a square has sides of MASK_STEP pixels
    """
    width, height = (math.ceil(side / MASK_STEP) for side in size)
    shift = (1 - MASK_STEP) / 2  # integer pixel coordinates are the middles of pixels
    source2mask = np.array([[1, 0, shift], [0, 1, shift], [0, 0, MASK_STEP]]) / MASK_STEP
    x, _ = undistortion_map(
        np.array(intrinsics).reshape(3, 3), model, distortion, size[::-1], source2mask, (width, height)
    )
    return x != OUTSIDE
