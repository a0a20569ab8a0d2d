"""Classes of voxels from the map of the grid.

From a map with heights, as in the occupancy variants of BEVDet; or from a bird's eye view whose channels are turned
into heights (Yu et al., FlashOCC, 2023). Modules are named as in the official checkpoints of the former.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from bev_perception.families.bevdet.config import BEVDetHeadConfig, EncoderConfig, OccupancyConfig
from bev_perception.models.protocol import NotFiniteError
from bev_perception.strict import ConfigError
from bev_perception.types import Occupancy, VoxelGrid


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


def voxel_grid(head: BEVDetHeadConfig) -> VoxelGrid:
    """Return where the voxels of an occupancy variant are.

    Raises ConfigError if they are no cubes.
    """
    x, y, z = head.grid.size
    heights = head.occupancy.heights if head.occupancy is not None and head.occupancy.heights else z
    edges = (*head.grid.cell[:2], (head.grid.range[5] - head.grid.range[2]) / heights)
    if max(edges) - min(edges) > 1e-6 * max(edges):
        raise ConfigError(
            f"head.grid: its voxels are {' x '.join(f'{edge:g}' for edge in edges)} m; they must be cubes, so change "
            "cell, range or occupancy.heights"
        )
    return VoxelGrid(head.grid.range[:3], edges[0], (x, y, heights))


def decode_occupancy(logits: Tensor, finite: Tensor, grid: VoxelGrid, class_names: tuple[str, ...]) -> Occupancy:
    """Return each voxel's most likely class.

    logits: [1, X, Y, Z, classes]
    finite: [] bool, whether everything that they were computed from is finite
    grid: where the voxels are
    class_names: names of the classes; the last is free

    Raises NotFiniteError for outputs, or features, that are NaN or infinite.
    """
    if not finite:
        raise NotFiniteError("the model's features or outputs hold NaN or infinity; look at the weights and the images")
    return Occupancy(logits[0].argmax(dim=-1).to(torch.uint8).cpu().numpy(), class_names, grid)
