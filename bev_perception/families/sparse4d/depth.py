"""What helps the features to tell depths: re-weighting by depth (version 1), a depth branch (versions 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bev_perception.models.query_layers import FeedForward

#: m, distances of the bins: from FIRST on, in steps of STEP, BINS of them
FIRST, STEP, BINS = 1.0, 5.0, 12
#: pixels; depths are learnt as of a camera with this focal length
FOCAL_UNIT = 100.0


class DepthReweighting(nn.Module):
    """Weight features by how well the distance that they speak of agrees with that of their box."""

    def __init__(self, dims: int) -> None:
        """Build the layers."""
        super().__init__()
        self.depth_fc = nn.Sequential(FeedForward(dims, dims, 0.0), FeedForward(dims, dims, 0.0), nn.Linear(dims, BINS))

    def confidence(self, features: Tensor, centers: Tensor) -> Tensor:
        """Return the probability [...] that features [..., C] speak of the distance of centres [..., >=2], m.

        The distance lies between two bins, whose probabilities are interpolated.
        """
        bins = FIRST + STEP * torch.arange(BINS, device=features.device, dtype=features.dtype)
        edge = 1e-5
        distance = centers[..., :2].norm(dim=-1).clamp(FIRST + edge, FIRST + STEP * (BINS - 1) - edge)
        shares, nearest = (1 - (distance[..., None] - bins).abs() / STEP).topk(2, dim=-1)  # [..., 2]
        probabilities = self.depth_fc(features).softmax(dim=-1)
        nearest = nearest.expand(*probabilities.shape[:-1], 2)
        return (shares * probabilities.gather(-1, nearest)).sum(dim=-1) / shares.square().sum(dim=-1)

    def forward(self, features: Tensor, centers: Tensor) -> Tensor:
        """Return the weighted features; arguments as of `confidence`."""
        return features * self.confidence(features, centers)[..., None]


class DepthBranch(nn.Module):
    """The depth of every cell of the finest levels; training compares it with lidar points, inference leaves it out."""

    def __init__(self, dims: int, levels: int) -> None:
        """Build a layer for each level."""
        super().__init__()
        self.depth_layers = nn.ModuleList(nn.Conv2d(dims, 1, 1) for _ in range(levels))

    def forward(self, levels: Sequence[Tensor], focal: Tensor) -> list[Tensor]:
        """Return the depths [B, V, h, w], m, of the first levels [B, V, h, w, C].

        focal: [B, V], pixels, of the resized images
        """
        depths = []
        for layer, level in zip(self.depth_layers, levels, strict=False):
            weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
            logarithm = F.linear(level, weight.flatten(1), bias).squeeze(-1)
            depths.append(logarithm.exp() * focal[:, :, None, None] / FOCAL_UNIT)
        return depths
