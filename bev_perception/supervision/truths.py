"""Ground truth of nuScenes key frames: boxes from the annotations; occupancy comes from label files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from bev_perception.data.augment import BevDraw, augment_boxes
from bev_perception.data.queues import training_boxes
from bev_perception.data.records import Records
from bev_perception.supervision.samples import BoxTruth


@dataclass(frozen=True)
class Sight:
    """How a training sample shows the current frame.

    world: how the world is changed.
    reference2image: [N, 4, 4] float64, reference frame (m), before the world is changed, to depth-scaled pixels of the
        augmented images.
    image_size: (height, width) of these images, pixels.
    """

    world: BevDraw
    reference2image: np.ndarray
    image_size: tuple[int, int]


class Truths(Protocol):
    """Ground truth of key frames in the variant's reference frame."""

    def read(self, index: int, sight: Sight) -> Any | None:
        """Return the ground truth of key frame `index` after augmentation, None if there is nothing to learn from it.

        sight: the augmentation.

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

    def read(self, index: int, sight: Sight) -> BoxTruth | None:
        """Return the boxes of key frame `index` after augmentation, None if there are none."""
        boxes, labels = training_boxes(self._records, index, self._classes, self._range)
        if not len(boxes):
            return None
        return BoxTruth(torch.from_numpy(augment_boxes(boxes, sight.world)).float(), torch.from_numpy(labels))
