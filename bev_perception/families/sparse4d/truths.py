"""Ground truth of Sparse4D: boxes that know which object they are, and depths of lidar points in the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bev_perception.config import VariantConfig
from bev_perception.data.augment import BevDraw, augment_boxes
from bev_perception.data.lidar_depth import depth_pyramid
from bev_perception.data.records import Annotations, Records
from bev_perception.supervision.samples import Change
from bev_perception.supervision.truths import Sight

#: pixels a cell of a backbone's first stage; every further stage's cells are twice as large
FIRST_STRIDE = 4


@dataclass(frozen=True)
class InstanceTruth:
    """Ground truth of one key frame with N cameras.

    boxes: [n, 9] float32 in the reference frame: centre x, y, z, length, width, height (m), yaw (rad), vx, vy (m/s; 0
        where unknown).
    labels: [n] int64, classes.
    ids: [n] int64, not negative; an object has the same id in every key frame.
    depths: for each supervised pyramid level [N, h, w] float32 m, depth of the nearest lidar point in a cell, -1 where
        there is none; empty without supervision of depth.
    """

    boxes: Tensor
    labels: Tensor
    ids: Tensor
    depths: tuple[Tensor, ...] = ()

    def each(self, change: Change) -> InstanceTruth:
        """Return the same with every tensor changed."""
        return InstanceTruth(change(self.boxes), change(self.labels), change(self.ids), tuple(map(change, self.depths)))


def training_objects(
    annotations: Annotations, class_names: Sequence[str], max_distance: float, world: BevDraw
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes [n, 9], labels [n] and ids [n] of the objects that a key frame teaches; see InstanceTruth.

    Objects without a lidar point, of other classes, and beyond max_distance are left out.

    max_distance: m, horizontally, from the origin of the reference frame to a box's centre.
    world: how the world is changed.
    """
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of.get(name, -1) for name in annotations.names.tolist()], np.int64)
    boxes = np.concatenate([annotations.boxes, np.nan_to_num(annotations.velocities)], axis=1)
    boxes = augment_boxes(boxes, world)
    boxes[:, 6] = (boxes[:, 6] + np.pi) % (2 * np.pi) - np.pi
    near = np.linalg.norm(boxes[:, :2], axis=1) <= max_distance
    kept = (annotations.lidar_points > 0) & near & (labels >= 0)
    return boxes[kept], labels[kept], annotations.instances[kept]


class InstanceTruths:
    """Annotated objects, and depths of lidar points if the variant learns them."""

    def __init__(self, config: VariantConfig, records: Records) -> None:
        """Keep the records; `config` must have a recipe."""
        assert config.training is not None
        self._config, self._recipe, self._records = config, config.training.family, records
        levels = config.head.depth_levels if config.head.recurrent else 0
        self._strides = [FIRST_STRIDE * 2 ** (config.backbone.first_level + level) for level in range(levels)]

    def read(self, index: int, sight: Sight) -> InstanceTruth | None:
        """Return the ground truth of key frame `index`.

        None if there are no boxes, unless frames follow each other in sequences, of which none is left out.

        Raises NuScenesError for lidar points that cannot be read.
        """
        annotations = self._records.annotations(index)
        head = self._config.head
        boxes, labels, ids = training_objects(annotations, self._config.class_names, head.max_distance, sight.world)
        if not len(boxes) and not self._recipe.sequences.parts:
            return None
        return InstanceTruth(
            torch.from_numpy(boxes).float(),
            torch.from_numpy(labels),
            torch.from_numpy(ids),
            self._depths(index, sight) if self._strides else (),
        )

    def _depths(self, index: int, sight: Sight) -> tuple[Tensor, ...]:
        points = self._records.lidar_points(index)
        maps = depth_pyramid(
            points,
            sight.reference2image,
            sight.image_size,
            self._strides,
            self._recipe.max_depth,
            self._recipe.clip_depth,
        )
        return tuple(torch.from_numpy(level) for level in maps)
