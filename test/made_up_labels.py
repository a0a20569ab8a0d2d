"""Made-up occupancy labels for records of nuScenes: ground, walls, and what is in the boxes."""

import numpy as np

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.data.occupancy_labels import OccupancyLabels, labels_path, write_labels
from bev_perception.geometry import invert_transform, transform_points
from bev_perception.types import OCC3D_GRID


def make_labels(records, i):
    """The labels of key frame i: a road, a wall to the left, terrain to the right, and a box's voxels of its class."""
    semantics = np.full(OCC3D_GRID.shape, OCC3D_CLASSES.index("free"), np.uint8)
    semantics[:, 80:120, 2] = OCC3D_CLASSES.index("driveable_surface")
    semantics[:, :80, 2] = OCC3D_CLASSES.index("terrain")
    semantics[:, 190, 2:10] = OCC3D_CLASSES.index("manmade")
    origin, size = np.array(OCC3D_GRID.origin), OCC3D_GRID.resolution
    annotations = records.annotations(i)
    for box, name in zip(annotations.boxes, annotations.names.tolist(), strict=True):
        center = transform_points(records.lidar2ego(i), box[None, :3])[0]
        low, high = ((center + side * np.linalg.norm(box[3:6]) / 2 - origin) / size for side in (-1, 1))
        low, high = (np.clip(edge, 0, OCC3D_GRID.shape).astype(int) for edge in (low, high + 1))
        voxels = low + np.argwhere(np.ones(np.maximum(high - low, 0)))  # [v, 3]
        in_lidar = transform_points(invert_transform(records.lidar2ego(i)), (voxels + 0.5) * size + origin)
        c, s = np.cos(box[6]), np.sin(box[6])
        along = (in_lidar - box[:3]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        inside = (np.abs(along) <= box[3:6] / 2).all(axis=1)
        semantics[tuple(voxels[inside].T)] = OCC3D_CLASSES.index(name)
    camera = np.zeros(OCC3D_GRID.shape, bool)
    camera[20:180, 20:180] = True
    return OccupancyLabels(semantics, np.ones_like(camera), camera)


def write_all_labels(records, folder):
    """Write the labels of all records to a folder; return the folder."""
    for i, (scene, token) in enumerate(zip(records.scenes, records.tokens, strict=True)):
        write_labels(labels_path(records.root, scene, token, folder), make_labels(records, i))
    return folder
