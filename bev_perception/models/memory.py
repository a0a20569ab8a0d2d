"""Rolling temporal memory: image features of past frames, kept on the device with their stamps and matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class FrameFeatures:
    """What is remembered of one frame.

    levels: one tensor a pyramid level, channels last, [N, h, w, C], on the device; zeros where a camera was missing.
    global2image: [N, 4, 4] float64.  present: [N] bool.  stamps: [N] int64 ns.  stamp: ns, of the frame.
    """

    levels: tuple[torch.Tensor, ...]
    global2image: np.ndarray
    present: np.ndarray
    stamps: np.ndarray
    stamp: int

    @property
    def nbytes(self) -> int:
        """Bytes that the features take on the device."""
        return sum(level.element_size() * level.nelement() for level in self.levels)


@dataclass(frozen=True)
class FeatureQueue:
    """Features of past frames, newest first; immutable: `push` returns a new queue that shares the tensors.

    So a model can hand out the memory as it would be after a frame, and the pipeline keeps it or not.
    capacity: most frames kept.  max_age: ns; older frames than that, seen from the newest, are not kept.
    """

    capacity: int
    max_age: int
    entries: tuple[FrameFeatures, ...] = ()

    def __len__(self) -> int:
        """Return the number of frames remembered."""
        return len(self.entries)

    @property
    def nbytes(self) -> int:
        """Bytes that the features take on the device."""
        return sum(entry.nbytes for entry in self.entries)

    def push(self, entry: FrameFeatures) -> FeatureQueue:
        """Return the queue with `entry` as the newest frame and without what is then too old or too much."""
        young = (e for e in self.entries if entry.stamp - e.stamp <= self.max_age)
        return FeatureQueue(self.capacity, self.max_age, (entry, *young)[: self.capacity])

    def history(self, current: FrameFeatures, count: int, interval: float) -> list[FrameFeatures]:
        """Return `count` past frames, newest first: the k-th is the one nearest to `current.stamp - k * interval` s.

        Whatever the camera rate, the model so sees the spacing that it was trained with. A history that is too short
        repeats its oldest frame; an empty one repeats `current`, as the reference does at a scene's start.
        """
        if not self.entries:
            return [current] * count
        wanted = [current.stamp - round(k * interval * 1e9) for k in range(1, count + 1)]
        return [min(self.entries, key=lambda entry: abs(entry.stamp - stamp)) for stamp in wanted]
