"""Occupancy as a map of costs for a planner: which columns of voxels can be driven through, as far as was seen."""

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
#: share of a voxel that must lie between the two heights for it to count; less is rounding
TOUCH = 1e-3
#: pixels; side of the squares in which is noted what a lens does not show
MASK_STEP = 8
#: more than any rig has cameras
MASKS_KEPT = 32


@dataclass(frozen=True)
class CostmapSettings:
    """What is an obstacle.

    min_height, max_height: m above base_link; what is lower can be driven over, what is higher driven under.
    free_classes: classes that are ground, however high; all others are obstacles.
    """

    min_height: float = 0.2
    max_height: float = 2.0
    free_classes: tuple[str, ...] = ("driveable_surface", "other_flat", "sidewalk", "terrain")

    def __post_init__(self) -> None:
        """Check the heights."""
        if not self.min_height < self.max_height:
            raise UserError(
                f"costmap_min_height is {self.min_height} m, costmap_max_height {self.max_height} m; "
                "the first must be the lower one"
            )

    def check(self, class_names: tuple[str, ...], grid: VoxelGrid) -> None:
        """Raise UserError for classes that a variant does not have, and for heights that its grid does not have."""
        names = class_names[:-1]  # free space is no ground
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
        """Return the grid's layers along z of which a part lies between the heights."""
        low, high = ((height - grid.origin[2]) / grid.resolution for height in (self.min_height, self.max_height))
        first, stop = math.floor(low + TOUCH), math.ceil(high - TOUCH)
        return slice(min(max(first, 0), grid.shape[2]), min(max(stop, 0), grid.shape[2]))


def costmap(occupancy: Occupancy, frame: Frame, missing: Container[str], settings: CostmapSettings) -> np.ndarray:
    """Return [X, Y] int8: OBSTACLE, FREE or UNKNOWN for every column of voxels.

    frame: whose cameras saw it; the occupancy is in base_link at its stamp.  missing: cameras that took no part.

    A column with anything but ground between the heights is an obstacle. Without one it is free if a camera saw down
    to its ground, see `ground_voxels`: that rays pass high over a column, where something may be hidden behind a car,
    does not make it free.

    Raises UserError for settings that do not fit the occupancy.
    """
    grid = occupancy.grid
    settings.check(occupancy.class_names, grid)
    passable = _ground(occupancy, settings)
    passable[occupancy.free] = True
    obstacle = ~passable[occupancy.semantics[..., settings.layers(grid)]].all(axis=2)

    voxels = ground_voxels(occupancy, settings)
    origins, directions = camera_rays(frame, missing, np.array(grid.origin) + grid.resolution * (voxels + 0.5))
    observed = observed_voxels(occupancy.occupied, grid, origins, directions)
    free = observed[tuple(voxels.T)].reshape(obstacle.shape)
    return np.where(obstacle, OBSTACLE, np.where(free, FREE, UNKNOWN)).astype(np.int8)


def ground_voxels(occupancy: Occupancy, settings: CostmapSettings) -> np.ndarray:
    """Return [X * Y, 3] int64: of each column the lowest voxel between the heights that is not beneath the ground.

    That is the voxel above the highest one of a free class, or the lowest between the heights where the ground is below
    them or not known. It must be seen for the column to be free. Where ground fills the column, it is the uppermost.
    """
    layers = settings.layers(occupancy.grid)
    below = _ground(occupancy, settings)[occupancy.semantics[..., : layers.stop]]  # [X, Y, layers]
    above_ground = np.where(below.any(axis=2), layers.stop - below[..., ::-1].argmax(axis=2), 0)  # [X, Y]
    k = np.clip(above_ground, layers.start, layers.stop - 1)
    i, j = np.indices(k.shape)
    return np.stack([i, j, k], axis=-1).reshape(-1, 3)


def _ground(occupancy: Occupancy, settings: CostmapSettings) -> np.ndarray:
    """Return [classes] bool: which are ground."""
    return np.isin(occupancy.class_names, settings.free_classes)


def camera_rays(frame: Frame, missing: Container[str], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return origins and directions [R, 3] (m, base_link at the frame's stamp): a ray from each camera to all it shows.

    points: [n, 3], m, base_link at the frame's stamp.  Each camera stands where it was at its own stamp; it shows what
    the network gets: its image without lens distortion, in the size it came in.
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
    """Return the indices of the points that are in the image; scaled: [3, n], their pixels u*d, v*d and depths d."""
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
    """Return [h, w] bool: of which squares of MASK_STEP pixels of the undistorted image the real one shows the middle.

    size: (width, height) of both images.
    """
    width, height = (math.ceil(side / MASK_STEP) for side in size)
    shift = (1 - MASK_STEP) / 2  # pixel coordinates are those of their middles
    source2mask = np.array([[1, 0, shift], [0, 1, shift], [0, 0, MASK_STEP]]) / MASK_STEP
    x, _ = undistortion_map(
        np.array(intrinsics).reshape(3, 3), model, distortion, size[::-1], source2mask, (width, height)
    )
    return x != OUTSIDE
