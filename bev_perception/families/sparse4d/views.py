"""What the decoder sees of a batch of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """One encoded frame of each stream of a batch.

    levels: L maps [B, V, h, w, C], contiguous, float32
    reference2image: [B, V, 4, 4], the stream's reference frame (m) to depth-scaled pixels of each image; zeros for a
        missing camera
    image_size: (height, width) of the images that the matrices project into, pixels
    present: [B, V] bool on the device, False for a missing camera
    reference2global: [B, 4, 4] float64
    stamps: [B] int64, ns
    exists: [B] bool, False for a stream that has no such past frame; its other entries are then finite, and without
        meaning. None: all streams have one
    """

    levels: Sequence[Tensor]
    reference2image: Tensor
    image_size: tuple[int, int]
    present: Tensor
    reference2global: np.ndarray
    stamps: np.ndarray
    exists: np.ndarray | None = None
