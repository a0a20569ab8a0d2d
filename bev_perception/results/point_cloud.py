"""An occupancy as a point cloud: one point per occupied voxel, at its middle, with class, object and colour."""

from __future__ import annotations

import numpy as np

from bev_perception.classes import class_colors
from bev_perception.results.costmap import CostmapSettings, ground
from bev_perception.types import Occupancy

#: layout of one point, 20 bytes:
#: x: m
#: y: m
#: z: m
#: rgb: 0x00RRGGBB
#: label: index into class_names
#: instance: number of the object; 0 for no object
POINT = np.dtype(
    {
        "names": ["x", "y", "z", "rgb", "label", "instance"],
        "formats": ["<f4", "<f4", "<f4", "<u4", "u1", "<i2"],
        "offsets": [0, 4, 8, 12, 16, 18],
        "itemsize": 20,
    }
)


def occupied_points(occupancy: Occupancy) -> np.ndarray:
    """Return the points [n] of dtype POINT in base_link, in the order of the voxels' indices, z fastest."""
    return _points(occupancy, occupancy.occupied)


def obstacle_points(occupancy: Occupancy, settings: CostmapSettings) -> np.ndarray:
    """Return the points [n] of dtype POINT of the voxels that make obstacles of their columns in the costmap."""
    chosen = occupancy.occupied & ~ground(occupancy, settings)[occupancy.semantics]  # [X, Y, Z]
    layers = settings.layers(occupancy.grid)
    chosen[..., : layers.start] = False
    chosen[..., layers.stop :] = False
    return _points(occupancy, chosen)


def _points(occupancy: Occupancy, chosen: np.ndarray) -> np.ndarray:
    i, j, k = np.nonzero(chosen)
    points = np.zeros(len(i), POINT)
    for name, index, start in zip("xyz", (i, j, k), occupancy.grid.origin, strict=True):
        points[name] = start + occupancy.grid.resolution * (index + 0.5)
    points["label"] = occupancy.semantics[i, j, k]
    if occupancy.instances is not None:
        points["instance"] = occupancy.instances[i, j, k]
    packed = class_colors(occupancy.class_names) @ np.array([1 << 16, 1 << 8, 1], np.uint32)  # [classes]
    points["rgb"] = packed[points["label"]]
    return points
