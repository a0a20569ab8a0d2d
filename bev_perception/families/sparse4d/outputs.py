"""What goes into the decoder beside the images, and what comes out of it.

Shapes: B batch, N instances, K of them that go on, D denoising instances, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bev_perception.families.sparse4d.instances import Instances


@dataclass(frozen=True)
class DenoisingInstances:
    """Instances that training adds after the N others: noisy copies of known boxes, with features of zeros.

    anchors: [B, D, 11]
    blocked: [N + D, N + D] bool, True where an instance (row) must not attend to another (column)
    recalled_features: [B, D, C], of denoising instances of the frame before; None: there are none
    recalled_anchors: [B, D, 11], moved to this frame (InstanceBank.move)
    recalled: [B, D] bool, which rows take the recalled features and anchors after the first stage
    """

    anchors: Tensor
    blocked: Tensor
    recalled_features: Tensor | None = None
    recalled_anchors: Tensor | None = None
    recalled: Tensor | None = None


@dataclass(frozen=True)
class Stage:
    """The predictions of a decoder stage.

    boxes: [B, n, 11], see anchors
    logits: [B, n, classes]; None in inference for stages whose classes nobody needs
    quality: [B, n, 2], logits of centerness and yawness; None without `quality`, or where `logits` is None
    """

    boxes: Tensor
    logits: Tensor | None
    quality: Tensor | None


@dataclass(frozen=True)
class Sparse4DOutput:
    """The predictions for a batch of frames.

    stages: of the N instances, one after each decoder stage. From the second stage on, the first K instances of a
        stream whose past is valid are those of the past frame
    denoising: the same of the D denoising instances; empty without them
    features: [B, N, C], after the last stage
    denoising_features: [B, D, C], after the last stage; None without denoising instances
    instances: what the next frame continues from, detached and without ids; None with "maps"
    chosen: [B, K], the rows of the N instances that `instances` holds; None with "maps"
    valid: [B] bool, whether past instances joined; None where there were none
    finite: [] bool, whether the last stage's outputs are finite
    ids: [B, N] int64 track ids that boxes bear, -1: none; None without. `instances` may have ids that are not shown
    """

    stages: tuple[Stage, ...]
    denoising: tuple[Stage, ...]
    features: Tensor
    denoising_features: Tensor | None
    instances: Instances | None
    chosen: Tensor | None
    valid: Tensor | None
    finite: Tensor
    ids: np.ndarray | None = None

    @property
    def last(self) -> Stage:
        """The predictions of the last stage."""
        return self.stages[-1]
