"""Ground truth of key frames: boxes or voxels, and the depths of lidar points in the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bev_perception.config import VariantConfig
from bev_perception.data.augment import augment_boxes, augment_grid
from bev_perception.data.lidar_depth import nearest_depths, project_lidar
from bev_perception.data.occupancy_labels import UNKNOWN_LABEL, check_classes, labels_path, read_labels
from bev_perception.data.queues import training_boxes
from bev_perception.data.records import Records
from bev_perception.families.bevdet.config import DepthConfig
from bev_perception.families.bevdet.occupancy_head import voxel_grid
from bev_perception.families.bevdet.targets import depth_labels
from bev_perception.results.boxes import to_ego
from bev_perception.sensing.preprocess import padded_size
from bev_perception.strict import ConfigError
from bev_perception.supervision.samples import BoxTruth, Change
from bev_perception.supervision.truths import Sight
from bev_perception.types import OCC3D_GRID, Boxes3D

#: value of pixels without a lidar point
NO_POINT = 0.0
#: pixels along an edge of a cell whose depth is taught
STRIDE = 16


@dataclass(frozen=True)
class DetectionTruth(BoxTruth):
    """Boxes in the reference frame, see BoxTruth, and depths.

    depths: [N, h, w] int64, bins of targets.depth_labels; None for a variant whose depths are not taught
    """

    depths: Tensor | None = None

    def each(self, change: Change) -> DetectionTruth:
        """Return the same with every tensor changed."""
        return DetectionTruth(change(self.boxes), change(self.labels), _changed(self.depths, change))


@dataclass(frozen=True)
class VoxelTruth:
    """Voxels of the grid in the reference frame, and depths.

    semantics: [X, Y, Z] uint8, classes
    counted: [X, Y, Z] bool, the voxels that are learnt from
    depths: as in DetectionTruth
    """

    semantics: Tensor
    counted: Tensor
    depths: Tensor | None = None

    def each(self, change: Change) -> VoxelTruth:
        """Return the same with every tensor changed."""
        return VoxelTruth(change(self.semantics), change(self.counted), _changed(self.depths, change))


def _changed(values: Tensor | None, change: Change) -> Tensor | None:
    return None if values is None else change(values)


def lidar_depths(
    points: np.ndarray, lidar2image: np.ndarray, image_size: tuple[int, int], config: DepthConfig
) -> np.ndarray:
    """Return the depth of the nearest lidar point in each pixel, [N, H, W] float32 m, NO_POINT where there is none.

    points: [n, 3], m
    lidar2image: [N, 4, 4], to depth-scaled pixels
    image_size: (height, width), pixels
    config: nearer points than its first depth, and those beyond its range, are left out
    """
    maps = []
    for u, v, depth in zip(*project_lidar(points, lidar2image), strict=True):
        kept = (depth >= config.low) & (depth < config.high)
        maps.append(nearest_depths(np.rint(u[kept]), np.rint(v[kept]), depth[kept], image_size, NO_POINT))
    return np.stack(maps)


class _Depths:
    """Reads the lidar of key frames."""

    def __init__(self, config: VariantConfig, records: Records) -> None:
        assert config.training is not None, "what cannot be trained has no truths"
        self._records, self._config, self._image = records, config.head.depth, config.image
        self._taught = config.training.family.depth_weight > 0

    def read(self, index: int, sight: Sight) -> Tensor | None:
        """Return the bins of key frame `index`, None for a variant whose depths are not taught."""
        if not self._taught:
            return None
        lidar2image = sight.reference2image @ self._records.lidar2ego(index)
        size = padded_size(self._image, *sight.image_size)
        depths = lidar_depths(self._records.lidar_points(index), lidar2image, size, self._config)
        return depth_labels(torch.from_numpy(depths), STRIDE, self._config)


class DetectionTruths:
    """Annotated boxes of the detector's classes, in base_link at the stamp of the lidar."""

    def __init__(self, config: VariantConfig, records: Records) -> None:
        """Keep the records; `config` must have a recipe."""
        self._classes, self._range = config.class_names, np.array(config.head.grid.range)
        self._records, self._depths = records, _Depths(config, records)

    def read(self, index: int, sight: Sight) -> DetectionTruth | None:
        """Return the ground truth of key frame `index`, None if no box lies on the grid.

        Raises NuScenesError for lidar points that cannot be read.
        """
        boxes, labels = self._boxes(index)
        boxes = augment_boxes(boxes, sight.world)
        inside = ((boxes[:, :2] > self._range[:2]) & (boxes[:, :2] < self._range[3:5])).all(axis=1)
        if not inside.any():
            return None
        return DetectionTruth(
            torch.from_numpy(boxes[inside]).float(),
            torch.from_numpy(labels[inside]),
            self._depths.read(index, sight),
        )

    def _boxes(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the boxes [n, 9] of key frame `index` in base_link, however far away, and their labels [n]."""
        everywhere = (-np.inf,) * 3 + (np.inf,) * 3
        boxes, labels = training_boxes(self._records, index, self._classes, everywhere)
        in_lidar = Boxes3D(
            boxes[:, :3], boxes[:, 3:6], boxes[:, 6], boxes[:, 7:9], np.ones(len(boxes)), labels, self._classes
        )
        moved = to_ego(in_lidar, self._records.lidar2ego(index))
        return np.concatenate([moved.centers, moved.sizes, moved.yaws[:, None], moved.velocities], axis=1), labels


class VoxelTruths:
    """Occupancy labels, of which the voxels that a camera sees are learnt from."""

    def __init__(self, config: VariantConfig, records: Records, folder: str | Path) -> None:
        """Keep the settings.

        config: the variant
        records: of the data set
        folder: of the labels, see labels_path

        Raises ConfigError for a recipe or a grid that voxel labels do not allow.
        """
        assert config.training is not None, "what cannot be trained has no truths"
        grid = voxel_grid(config.head)
        if grid.shape != OCC3D_GRID.shape or not np.allclose(grid.origin, OCC3D_GRID.origin):
            raise ConfigError(
                f"{config.name}: labels have {OCC3D_GRID.shape} voxels of {OCC3D_GRID.resolution} m from "
                f"{OCC3D_GRID.origin} m on, the variant {grid.shape} of {grid.resolution} m from {grid.origin} m on; "
                "change head.grid"
            )
        if config.training.bev.scale != (1.0, 1.0):
            raise ConfigError(f"{config.name}: labels of voxels cannot be scaled; let training.bev.scale be [1, 1]")
        self._classes, self._records, self._folder = config.class_names, records, folder
        self._camera_mask, self._depths = config.training.family.camera_mask, _Depths(config, records)

    def read(self, index: int, sight: Sight) -> VoxelTruth:
        """Return the labels of key frame `index`.

        Raises ConfigError if the file lacks the camera mask that the recipe asks for, NuScenesError for labels or lidar
        points that cannot be read.
        """
        path = labels_path(self._records.root, self._records.scenes[index], self._records.tokens[index], self._folder)
        labels = read_labels(path)
        check_classes(labels.semantics, self._classes, str(path))
        counted = labels.semantics != UNKNOWN_LABEL
        if self._camera_mask:
            if labels.mask_camera is None:
                raise ConfigError(f"{path} holds no mask_camera; train with training.family.camera_mask false")
            counted &= labels.mask_camera
        return VoxelTruth(
            torch.from_numpy(augment_grid(labels.semantics, sight.world, UNKNOWN_LABEL)),
            torch.from_numpy(augment_grid(counted, sight.world, outside=False)),
            self._depths.read(index, sight),
        )
