"""What a data set hands to training, and how its samples become batches in a repeatable order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

#: of a voxel that belongs to no mask
NO_INSTANCE = -1

#: what gives another tensor of the same values
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BoxTruth:
    """What a detector should say of a sample.

    boxes: [n, 9] float32 in the reference frame: centre x, y, z, length, width, height (m), yaw (rad), vx, vy (m/s; 0
    where unknown).  labels: [n] int64.
    """

    boxes: Tensor
    labels: Tensor

    def each(self, change: Change) -> BoxTruth:
        """Return the same with every tensor changed."""
        return BoxTruth(change(self.boxes), change(self.labels))


@dataclass(frozen=True)
class OccupancyTruth:
    """What an occupancy model should say of a sample, on its grid in the reference frame.

    semantics: [X, Y, Z] uint8, classes, UNKNOWN_LABEL where unknown.
    instances: [X, Y, Z] int16, what is to be found as one mask: indices into class_ids, or NO_INSTANCE.
    class_ids: [M] int64, the masks' classes.  visible: [X, Y, Z] bool, where masks are compared; None: everywhere.
    """

    semantics: Tensor
    instances: Tensor
    class_ids: Tensor
    visible: Tensor | None = None

    def each(self, change: Change) -> OccupancyTruth:
        """Return the same with every tensor changed."""
        return OccupancyTruth(
            change(self.semantics),
            change(self.instances),
            change(self.class_ids),
            None if self.visible is None else change(self.visible),
        )


Truth = TypeVar("Truth", BoxTruth, OccupancyTruth)


@dataclass(frozen=True)
class TrainingSample(Generic[Truth]):
    """One annotated moment: T frames of N cameras, the current frame first, in the model's order.

    images: [T, N, h, w, 3] uint8 BGR, resized, cropped and flipped, not yet normalised or padded; or what a frozen
    encoder has made of them, for each level [T, N, h, w, C] float16.
    reference2image: [T, N, 4, 4], the current reference frame (m) to depth-scaled pixels of each image; every
    augmentation is already in it, as in the truth.  time_differences: [T] s, current minus frame t.
    """

    images: np.ndarray | tuple[np.ndarray, ...]
    reference2image: np.ndarray
    time_differences: np.ndarray
    truth: Truth


class TrainingData(Protocol[Truth]):
    """A data set. `rng` is the only source of chance, so that the same number gives the same sample.

    A sample that cannot be used is the data set's to replace (by another that rng draws).
    """

    def __len__(self) -> int:
        """Return the number of samples of one epoch."""

    def sample(self, index: int, rng: np.random.Generator) -> TrainingSample[Truth]:
        """Return sample `index`, augmented by draws from rng."""


#: pixels [N, h, w, 3] uint8 BGR of the model's size to the levels of its pyramid, each [N, h, w, C]
Encode = Callable[[np.ndarray], Sequence[Tensor]]


@runtime_checkable
class EncodableData(TrainingData[Truth], Protocol):
    """A data set whose images can be encoded beforehand."""

    def encoded(self, encode: Encode, folder: Path, part: int, parts: int) -> EncodableData[Truth]:
        """Return the data set with features in the place of images; only the world of its samples is augmented.

        Every image is encoded once. Of `parts` processes each does its share and leaves it in the folder, an empty
        one, for all; none may take a sample before all have done theirs.
        """


@dataclass(frozen=True)
class Batch(Generic[Truth]):
    """B samples.

    images: [B, T, N, h, w, 3] uint8, or for each level [B, T, N, h, w, C] float16.
    reference2image: [B, T, N, 4, 4] float32.  time_differences: [B, T] float32.
    truths: of each sample.  seeds: one a sample, for what is drawn on the device.
    """

    images: Tensor | tuple[Tensor, ...]
    reference2image: Tensor
    time_differences: Tensor
    truths: tuple[Truth, ...]
    seeds: tuple[int, ...]

    def to(self, device: torch.device) -> Batch[Truth]:
        """Return the batch on `device`; it need not have arrived yet where it comes from pinned memory."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch[Truth]:
        """Return the batch in pinned memory; DataLoader calls this by its name."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Change) -> Batch[Truth]:
        images = tuple(map(change, self.images)) if isinstance(self.images, tuple) else change(self.images)
        return Batch(
            images,
            change(self.reference2image),
            change(self.time_differences),
            tuple(truth.each(change) for truth in self.truths),
            self.seeds,
        )


def sample_generators(batch: Batch) -> list[torch.Generator]:
    """Return a source of chance for each sample, on the CPU."""
    return [torch.Generator().manual_seed(seed) for seed in batch.seeds]
