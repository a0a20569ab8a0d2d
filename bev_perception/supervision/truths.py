"""Ground truth of nuScenes key frames: boxes from the annotations; occupancy comes from label files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from bev_perception.data.augment import BevDraw, augment_boxes
from bev_perception.data.queues import training_boxes
from bev_perception.data.records import Records
from bev_perception.supervision.samples import BoxTruth


class Truths(Protocol):
    """Ground truth of key frames in the variant's reference frame."""

    def read(self, index: int, world: BevDraw) -> Any | None:
        """Return the ground truth of key frame `index` after augmentation, None if there is nothing to learn from it.

        world: the augmentation.

        Raises NuScenesError if this key frame cannot be read, ConfigError if the whole data set cannot be used.
        """


class BoxTruths:
    """Annotated boxes of the classes and the area of a detector."""

    def __init__(self, class_names: Sequence[str], area: Sequence[float], records: Records) -> None:
        """Select boxes.

        class_names: classes of the detector.
        area: lowest x, y, z, then highest x, y, z (m) of box centres.
        """
        self._classes, self._range, self._records = tuple(class_names), tuple(area), records

    def read(self, index: int, world: BevDraw) -> BoxTruth | None:
        """Return the boxes of key frame `index` after augmentation, None if there are none."""
        boxes, labels = training_boxes(self._records, index, self._classes, self._range)
        if not len(boxes):
            return None
        return BoxTruth(torch.from_numpy(augment_boxes(boxes, world)).float(), torch.from_numpy(labels))
