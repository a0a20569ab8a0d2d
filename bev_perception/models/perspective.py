"""A dense head on the image features: what is where in each image, seen from the camera alone.

Supervising the images' features directly teaches a backbone long before the queries of a decoder can (perspective
supervision, Yang et al., BEVFormer v2, CVPR 2023). The heat maps are those of CenterNet (Zhou et al., 2019). Only
training runs this head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

#: values at an object's middle: its offset from the cell (2, cells), log depth, log sizes (3), front (3)
NUM_CODES = 9


@dataclass(frozen=True)
class PerspectiveOutput:
    """What the head says of images.

    heat: [B, N, classes, h, w], logits of "the middle of an object of this class is in this cell".
    codes: [B, N, NUM_CODES, h, w], of the object whose middle is in a cell.
    """

    heat: Tensor
    codes: Tensor


class PerspectiveHead(nn.Module):
    """Two small branches over one pyramid level."""

    def __init__(self, dims: int, num_classes: int) -> None:
        """Build the branches for features of `dims` channels."""
        super().__init__()
        self.num_classes = num_classes
        self.shared = nn.Sequential(nn.Conv2d(dims, dims, 3, padding=1), nn.ReLU(inplace=True))
        self.heat = nn.Conv2d(dims, num_classes, 1)
        self.codes = nn.Conv2d(dims, NUM_CODES, 1)
        assert self.heat.bias is not None
        nn.init.constant_(self.heat.bias, -math.log(99))  # every class starts at a probability of 1 %

    def forward(self, features: Tensor) -> PerspectiveOutput:
        """Return what is seen in features [B, N, h, w, C]."""
        images = features.flatten(0, 1).permute(0, 3, 1, 2)
        shared = self.shared(images)
        shape = features.shape[:2]
        return PerspectiveOutput(self.heat(shared).unflatten(0, shape), self.codes(shared).unflatten(0, shape))
