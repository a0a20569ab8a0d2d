"""The sparse voxel decoder of SparseOcc (Liu et al., ECCV 2024, section 3.1): from coarse cubes to fine voxels.

In each of three stages, every cube samples the images and is split into its eight children, of which only those that
are least likely to be free are kept. Locations count cubes of the stage's own size along x, y, z from the low corner of
the range; the children of the cube at c are those at 2c and 2c + 1 along each axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bev_perception.families.sparseocc.config import SparseOccHeadConfig
from bev_perception.models.query_layers import (
    AdaptiveMixing,
    EncodedViews,
    FeedForward,
    PositionEncoding,
    ScaleAdaptiveSelfAttention,
    decode_centers,
)

#: fine voxels along an edge of the cubes that enter each stage; their children have half as many
CUBE_SIDES = (8, 4, 2)
#: output points of the mixing per sampled point
OUT_POINTS_PER_IN_POINT = 4
#: positions of the eight children in a cube, in the order of the official checkpoints
CHILDREN = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))


@dataclass(frozen=True)
class VoxelStage:
    """The voxels that one stage has kept, the most certainly occupied first.

    locations: [B, K, 3] int64, in voxels of the stage
    logits: [B, K, classes], the last class is free
    scale: fine voxels along an edge of the stage's voxels: 4, 2 or 1
    """

    locations: Tensor
    logits: Tensor
    scale: int


class VoxelDecoderLayer(nn.Module):
    """Refine all cubes of a stage by sampling the images."""

    def __init__(self, head: SparseOccHeadConfig, frames: int, stage: int) -> None:
        """Build the layer of a stage (0, 1, 2) for `frames` frames; finer cubes sample fewer points."""
        super().__init__()
        dims = head.embed_dims
        self.range, self.side = head.occ_range, CUBE_SIDES[stage]
        self.grid = tuple(size // self.side for size in head.occ_size)  # number of cubes along x, y, z
        self.size = self.side * head.resolution  # m
        self.groups, self.points = head.num_groups, head.num_points * self.side // CUBE_SIDES[0]
        self.position_encoder = PositionEncoding(dims)
        self.self_attn: nn.Module | None = None
        if stage < 2:  # there are too many of the finest cubes for self-attention
            self.self_attn = ScaleAdaptiveSelfAttention(dims, head.num_heads, head.dropout)
            self.norm1 = nn.LayerNorm(dims)
        # names as in the official checkpoints: sampling.sampling_offset
        self.sampling = nn.ModuleDict(
            {
                "sampling_offset": (offset := nn.Linear(dims, self.groups * self.points * 3)),
                "scale_weights": nn.Linear(dims, self.groups * self.points * head.num_levels),
            }
        )
        nn.init.zeros_(offset.weight)
        nn.init.uniform_(offset.bias, -0.5, 0.5)
        in_points = frames * self.points
        self.mixing = AdaptiveMixing(dims, self.groups, in_points, OUT_POINTS_PER_IN_POINT * in_points)
        self.ffn = FeedForward(dims, head.ffn_dim, head.dropout)
        self.norm2 = nn.LayerNorm(dims)
        self.norm3 = nn.LayerNorm(dims)

    def forward(self, features: Tensor, locations: Tensor, views: EncodedViews) -> Tensor:
        """Return the refined features [B, Q, C] of cubes.

        features: [B, Q, C]
        locations: [B, Q, 3]
        views: the encoded images
        """
        relative = locations / features.new_tensor(self.grid)  # low corner, 0..1
        corners = decode_centers(relative, self.range)  # [B, Q, 3] m
        features = features + self.position_encoder(relative)
        if self.self_attn is not None:
            features = self.norm1(self.self_attn(features, corners))
        offsets = self.sampling["sampling_offset"](features).unflatten(-1, (self.groups, self.points, 3))
        points = (corners + self.size / 2)[:, :, None, None] + self.size * offsets  # [B, Q, G, P, 3] m
        sampled = views.sample(points, self.sampling["scale_weights"](features))
        features = self.norm2(self.mixing(sampled, features))
        refined: Tensor = self.norm3(self.ffn(features))
        return refined


class VoxelDecoder(nn.Module):
    """The three stages of the decoder."""

    def __init__(self, head: SparseOccHeadConfig, num_classes: int, frames: int) -> None:
        """Build the decoder; `num_classes` includes free space."""
        super().__init__()
        self.dims = head.embed_dims
        self.decoder_layers = nn.ModuleList(VoxelDecoderLayer(head, frames, i) for i in range(len(CUBE_SIDES)))
        # names as in the official checkpoints: lift_feat_heads.0.0
        self.lift_feat_heads = nn.ModuleList(
            nn.Sequential(nn.Linear(self.dims, len(CHILDREN) * self.dims), nn.ReLU(inplace=True)) for _ in CUBE_SIDES
        )
        self.seg_pred_heads = nn.ModuleList(nn.Linear(self.dims, num_classes) for _ in CUBE_SIDES)
        self.first_grid = tuple(size // CUBE_SIDES[0] for size in head.occ_size)

    def forward(self, views: EncodedViews, kept: Sequence[int]) -> tuple[tuple[VoxelStage, ...], Tensor]:
        """Return the three stages and the features [B, K, C] of the last one's voxels.

        views: the encoded images
        kept: number of voxels that each stage keeps

        No gradient flows from a stage to the one before it: each learns from its own logits.
        """
        like = views.reference2image  # has the dtype and the device of the weights
        locations = all_cubes(self.first_grid, like.device).expand(len(like), -1, -1)  # [B, Q, 3]
        features = like.new_zeros(*locations.shape[:2], self.dims)  # [B, Q, C]
        stages = []
        for i, side in enumerate(CUBE_SIDES):
            features = self.decoder_layers[i](features.detach(), locations, views)
            locations = children_of(locations)  # [B, 8 Q, 3]
            features = self.lift_feat_heads[i](features).unflatten(-1, (len(CHILDREN), -1)).flatten(1, 2)
            logits = self.seg_pred_heads[i](features)
            best = least_free(logits, kept[i])
            locations, features, logits = (_take(x, best) for x in (locations, features, logits))
            stages.append(VoxelStage(locations, logits, side // 2))
        return tuple(stages), features


def all_cubes(grid: Sequence[int], device: torch.device) -> Tensor:
    """Return the locations [X*Y*Z, 3] int64 of all cubes of a grid, z fastest."""
    return torch.cartesian_prod(*(torch.arange(count, device=device) for count in grid))


def children_of(locations: Tensor) -> Tensor:
    """Return the locations [B, 8 Q, 3] of the children of cubes at [B, Q, 3], parent by parent."""
    shifts = torch.tensor(CHILDREN, device=locations.device)
    return (2 * locations[:, :, None] + shifts).flatten(1, 2)


def least_free(logits: Tensor, count: int) -> Tensor:
    """Return the indices [B, count] of the voxels that are least likely to be free, least likely first.

    logits: [B, N, classes], the last class is free
    count: number of voxels

    The log odds against free give the same order as 1 - softmax, but do not saturate: with 1 - softmax, thousands of
    certainly occupied voxels would tie at exactly 1.
    """
    odds = logits[..., :-1].logsumexp(dim=-1) - logits[..., -1]
    return odds.topk(count, dim=1).indices


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows [B, K, C] of x [B, N, C] at the indices [B, K]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
