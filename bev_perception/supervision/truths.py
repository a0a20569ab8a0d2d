"""What the models should say of nuScenes' key frames: boxes from the annotations, occupancy from files of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from bev_perception.data.augment import BevDraw, augment_boxes
from bev_perception.data.queues import training_boxes
from bev_perception.data.records import Records
from bev_perception.supervision.samples import BoxTruth, OccupancyTruth


class Truths(Protocol):
    """The truths of records, in the variant's reference frame."""

    def read(self, index: int, world: BevDraw) -> BoxTruth | OccupancyTruth | None:
        """Return the truth of key frame `index` in a changed world, None if there is nothing to learn from it.

        Raises NuScenesError for a key frame that cannot be read, and ConfigError if none of its kind could be used.
        """


class BoxTruths:
    """The annotated boxes that a detector can find."""

    def __init__(self, class_names: Sequence[str], area: Sequence[float], records: Records) -> None:
        """Keep them; area: x, y, z low, then high, m, in which boxes count."""
        self._classes, self._range, self._records = tuple(class_names), tuple(area), records

    def read(self, index: int, world: BevDraw) -> BoxTruth | None:
        """Return the boxes of key frame `index`, None if it has none that count."""
        boxes, labels = training_boxes(self._records, index, self._classes, self._range)
        if not len(boxes):
            return None
        return BoxTruth(torch.from_numpy(augment_boxes(boxes, world)).float(), torch.from_numpy(labels))
