"""Classes of voxels from the map of the grid.

From a map with heights, as in the occupancy variants of BEVDet; or from a bird's eye view whose channels are turned
into heights (Yu et al., FlashOcc, 2023). Modules are named as in the official checkpoints of the former.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from bev_perception.families.bevdet.config import EncoderConfig, OccupancyConfig


def build_final_conv(encoder: EncoderConfig) -> nn.Sequential:
    """Return the convolution on the map, which keeps its channels and size."""
    channels, kind = encoder.out_channels, nn.Conv3d if encoder.volumetric else nn.Conv2d
    return nn.Sequential(OrderedDict(conv=kind(channels, channels, 3, padding=1), relu=nn.ReLU(inplace=True)))


def build_predictor(head: OccupancyConfig, encoder: EncoderConfig, classes: int) -> nn.Sequential:
    """Return the layers that classify a voxel, or a whole column of `head.heights` voxels."""
    outputs = classes * max(head.heights, 1)
    return nn.Sequential(nn.Linear(encoder.out_channels, head.hidden), nn.Softplus(), nn.Linear(head.hidden, outputs))


def classify(bev: Tensor, final_conv: nn.Module, predictor: nn.Module, head: OccupancyConfig) -> Tensor:
    """Return the logits [B, X, Y, Z, classes] of a map [B, C, (Z,) Y, X]."""
    features = final_conv(bev)
    if head.heights:
        return predictor(features.permute(0, 3, 2, 1)).unflatten(-1, (head.heights, -1))  # columns to heights
    return predictor(features.permute(0, 4, 3, 2, 1))
