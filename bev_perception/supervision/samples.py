"""Samples, batches and the interface of data sets for training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bev_perception.types import Cameras

#: instance of voxels that belong to no mask
NO_INSTANCE = -1

#: a function that moves or copies a tensor
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BoxTruth:
    """Ground truth of a detector.

    boxes: [n, 9] float32 in the reference frame: centre x, y, z, length, width, height (m), yaw (rad), vx, vy (m/s; 0
        where unknown).
    labels: [n] int64, classes.
    """

    boxes: Tensor
    labels: Tensor

    def each(self, change: Change) -> BoxTruth:
        """Return the same with every tensor changed."""
        return BoxTruth(change(self.boxes), change(self.labels))


@dataclass(frozen=True)
class OccupancyTruth:
    """Ground truth of an occupancy model on its grid in the reference frame.

    semantics: [X, Y, Z] uint8, classes, or UNKNOWN_LABEL.
    instances: [X, Y, Z] int16, the mask that a voxel belongs to: an index into class_ids, or NO_INSTANCE.
    class_ids: [M] int64, the masks' classes.
    visible: [X, Y, Z] bool, voxels in which masks are compared; None: all.
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


class GroundTruth(Protocol):
    """What a family's samples teach: a frozen dataclass of tensors."""

    def each(self, change: Change) -> Any:
        """Return the same with every tensor changed."""


Truth = TypeVar("Truth", bound=GroundTruth)


@dataclass(frozen=True)
class TrainingSample(Generic[Truth]):
    """An annotated key frame: T frames of N cameras, the current frame first, in the model's order.

    images: [T, N, h, w, 3] uint8 BGR, resized, cropped and flipped but not normalised or padded; or the features of a
        frozen encoder, [T, N, h, w, C] float16 for each pyramid level.
    cameras: their matrices, all arrays [T, N, ...], augmentation of the images included; see types.Cameras.
    reference2global: [4, 4], from the current reference frame (m), whose world is augmented, to the global frame.
    time_differences: [T] s, the current frame's time minus each frame's; infinite for one that does not exist.
    stamp: ns, of the current frame.
    world: [4, 4], from the reference frame as it was to the augmented one.
    truth: ground truth, augmented likewise.
    """

    images: np.ndarray | tuple[np.ndarray, ...]
    cameras: Cameras
    reference2global: np.ndarray
    time_differences: np.ndarray
    stamp: int
    world: np.ndarray
    truth: Truth

    @property
    def reference2image(self) -> np.ndarray:
        """[T, N, 4, 4], from the current reference frame (m) to depth-scaled pixels, augmentation included."""
        return self.cameras.global2image @ self.reference2global


class TrainingData(Protocol[Truth]):
    """A data set. All randomness comes from `rng`, so that the same seed gives the same sample.

    The data set itself replaces samples that cannot be used, by others that it draws with rng.
    """

    def __len__(self) -> int:
        """Return the number of samples per epoch."""

    def sample(
        self, index: int, rng: np.random.Generator, augmentation: np.random.Generator | None = None
    ) -> TrainingSample[Truth]:
        """Return sample `index`, randomly augmented.

        augmentation: draws how images and world are changed; None: rng does.
        """

    def sequences(self) -> Sequence[Sequence[int]]:
        """Return the samples of each recorded scene, in order of time."""

    def classes(self, index: int) -> Collection[int]:
        """Return the classes of the boxes that sample `index` teaches."""


#: from pixels [N, h, w, 3] uint8 BGR in the model's input size to its pyramid, [N, h, w, C] for each level
Encode = Callable[[np.ndarray], Sequence[Tensor]]


@runtime_checkable
class EncodableData(TrainingData[Truth], Protocol):
    """A data set whose images can be encoded before training."""

    def encoded(self, encode: Encode, folder: Path, part: int, parts: int) -> EncodableData[Truth]:
        """Return the data set with features instead of images; its samples are augmented in 3D only.

        Every image is encoded once, and every process encodes a share. No process may read a sample before all
        processes have returned.

        encode: computes the features.
        folder: empty folder for the features, shared by all processes.
        part: number of this process, from 0.
        parts: number of processes.
        """


@dataclass(frozen=True)
class BatchGeometry:
    """The matrices of B samples, float64; see TrainingSample and types.Cameras.

    intrinsics: [B, T, N, 3, 3].
    source2image: [B, T, N, 4, 4].
    sensor2ego: [B, T, N, 4, 4].
    ego2global: [B, T, N, 4, 4].
    reference2global: [B, 4, 4].
    world: [B, 4, 4].
    """

    intrinsics: Tensor
    source2image: Tensor
    sensor2ego: Tensor
    ego2global: Tensor
    reference2global: Tensor
    world: Tensor

    def each(self, change: Change) -> BatchGeometry:
        """Return the same with every tensor changed."""
        return BatchGeometry(*(change(getattr(self, item.name)) for item in fields(self)))


@dataclass(frozen=True)
class Batch(Generic[Truth]):
    """B samples; see TrainingSample.

    images: [B, T, N, h, w, 3] uint8, or [B, T, N, h, w, C] float16 for each pyramid level.
    reference2image: [B, T, N, 4, 4] float32.
    time_differences: [B, T] float32 s.
    truths: ground truth of each sample.
    seeds: a seed for each sample, for random numbers drawn after loading.
    geometry: the matrices that reference2image is made of.
    stamps: [B] int64 ns.
    """

    images: Tensor | tuple[Tensor, ...]
    reference2image: Tensor
    time_differences: Tensor
    truths: tuple[Truth, ...]
    seeds: tuple[int, ...]
    geometry: BatchGeometry
    stamps: Tensor

    def to(self, device: torch.device) -> Batch[Truth]:
        """Return the batch on `device`; from pinned memory the copy is asynchronous."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch[Truth]:
        """Return the batch in pinned memory; DataLoader calls this method by name."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Change) -> Batch[Truth]:
        images = tuple(map(change, self.images)) if isinstance(self.images, tuple) else change(self.images)
        return Batch(
            images,
            change(self.reference2image),
            change(self.time_differences),
            tuple(truth.each(change) for truth in self.truths),
            self.seeds,
            self.geometry.each(change),
            change(self.stamps),
        )


def sample_generators(batch: Batch) -> list[torch.Generator]:
    """Return a random number generator on the CPU for each sample."""
    return [torch.Generator().manual_seed(seed) for seed in batch.seeds]
