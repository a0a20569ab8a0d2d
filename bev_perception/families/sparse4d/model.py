"""Sparse4D (Lin et al., 2022 and 2023): sparse instances that sample the images and live from frame to frame.

An instance is a feature and a box. Each decoder stage samples the images at key points of the boxes and refines them.
Version 1 samples remembered feature maps of past frames too. Versions 2 and 3 continue from the best instances of the
past frame instead, so that their cost does not grow with the length of the history.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bev_perception.families.sparse4d.instances import Instances
from bev_perception.families.sparse4d.outputs import DenoisingInstances, Sparse4DOutput
from bev_perception.families.sparse4d.views import Views
from bev_perception.models.encoder import CameraModel


class Sparse4D(CameraModel[Sparse4DOutput]):
    """The detector. Submodules: img_backbone, img_neck, head (instance_bank, anchor_encoder, layers), depth_branch."""

    def detect(
        self,
        frames: Sequence[Views],
        past: Instances | None = None,
        denoising: DenoisingInstances | None = None,
    ) -> Sparse4DOutput:
        """Detect boxes in a batch of encoded frames; differentiable, in training mode every stage predicts all.

        frames: the current frame; with "maps" then the past ones, newest first (none at first)
        past: with "instances": `instances` of the output for the frame before; None at first
        denoising: D further instances for training
        """
        raise NotImplementedError

    def depths(self, levels: Sequence[Tensor], focal: Tensor) -> list[Tensor]:
        """Return the depths [B, V, h, w], m, of the first head.depth_levels levels [B, V, h, w, C].

        focal: [B, V], pixels, of the resized images
        """
        raise NotImplementedError
