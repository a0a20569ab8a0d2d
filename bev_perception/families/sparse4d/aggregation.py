"""Sample image features at the key points of boxes, and sum them up for each instance.

Shapes: B batch, N instances, P key points, V cameras, L pyramid levels, G groups, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bev_perception.families.sparse4d.anchors import (
    CENTER,
    FIXED_POINTS,
    VELOCITY,
    KeyPoints,
    encoder_layers,
    move_anchors,
    move_points,
)
from bev_perception.families.sparse4d.config import Sparse4DHeadConfig
from bev_perception.families.sparse4d.depth import DepthReweighting
from bev_perception.families.sparse4d.instances import past2current, seconds_between
from bev_perception.families.sparse4d.views import Views
from bev_perception.ops.deformable_aggregation import aggregate_features
from bev_perception.ops.sampling import project_points

#: how fast a frame fades with its age: FADING to the power of 10 times the seconds
FADING = 0.9


def project(points: Tensor, views: Views) -> Tensor:
    """Return where points [B, N, P, 3], m, are in the images: [B, N, P, V, 2], in image widths and heights."""
    uv, _, _ = project_points(points.flatten(1, 2)[:, None], views.reference2image[:, None], views.image_size)
    return uv[:, 0].permute(0, 3, 1, 2).unflatten(1, points.shape[1:3])


def softmax_weights(logits: Tensor) -> Tensor:
    """Return weights [B, N, P, V, L, G] of logits [B, N, V, L, P, G]; those of a group add up to 1 for an instance."""
    weights = logits.flatten(2, 4).softmax(dim=2).view(logits.shape)
    return weights.permute(0, 1, 4, 2, 3, 5)


def _rows_where(chosen: np.ndarray, values: Tensor, others: Tensor) -> Tensor:
    """Return values [B, ...] in the chosen [B] rows, and the others elsewhere."""
    if chosen.all():
        return values
    rows = torch.from_numpy(chosen).to(values.device).view(-1, *[1] * (values.ndim - 1))
    return torch.where(rows, values, others)


class DeformableAggregation(nn.Module):
    """The sampling of versions 2 and 3: weights depend on each camera's matrix, points outside of images do not count.

    gate: see aggregate_features
    """

    gate = True

    def __init__(self, head: Sparse4DHeadConfig) -> None:
        """Build the layers; at first all weights are equal."""
        super().__init__()
        dims, points = head.embed_dims, len(FIXED_POINTS) + head.learned_points
        self.shape = (head.num_levels, points, head.num_groups)
        self.point_dropout = head.point_dropout
        self.kps_generator = KeyPoints(dims, head.learned_points)
        self.camera_encoder = nn.Sequential(*encoder_layers(12, dims, 1, 2))
        self.weights_fc = nn.Linear(dims, head.num_levels * points * head.num_groups)
        self.output_proj = nn.Linear(dims, dims)

    def weights(self, features: Tensor, embeds: Tensor, views: Views) -> Tensor:
        """Return the sampling weights [B, N, P, V, L, G]; those of a missing camera are 0."""
        # the layer is linear, so instances and cameras go through it apart, not in all their pairs
        own = F.linear(features + embeds, self.weights_fc.weight)  # [B, N, L*P*G]
        matrices = views.reference2image[:, :, :3].flatten(2)  # [B, V, 12]
        by_camera = self.weights_fc(self.camera_encoder(matrices))  # [B, V, L*P*G]
        by_camera = by_camera.masked_fill(~views.present[..., None], -torch.inf)
        logits = own[:, :, None] + by_camera[:, None]
        weights = softmax_weights(logits.unflatten(-1, self.shape))
        if self.training and self.point_dropout > 0:
            kept = torch.rand(weights.shape[:4], device=weights.device) >= self.point_dropout
            weights = weights * (kept / (1 - self.point_dropout))[..., None, None]
        return weights

    def forward(self, views: Views, features: Tensor, anchors: Tensor, embeds: Tensor) -> Tensor:
        """Return [B, N, 2C], what is sampled beside the features.

        features: [B, N, C]
        anchors: [B, N, 11]
        embeds: [B, N, C], the encoded anchors
        """
        uv = project(self.kps_generator(anchors, features), views)
        sampled = aggregate_features(views.levels, uv, self.weights(features, embeds, views), self.gate)
        return torch.cat([self.output_proj(sampled), features], dim=-1)


class LinearFusion(nn.Module):
    """Fuse the features of past frames with those of a newer one."""

    def __init__(self, dims: int) -> None:
        """Build the layer."""
        super().__init__()
        self.fusion_layer = nn.Linear(2 * dims, dims)

    def forward(self, state: Tensor, new: Tensor, seconds: Tensor) -> Tensor:
        """Return the state [B, ..., C] with the new features [B, ..., C] in it.

        seconds: [B], age of the new features; they fade with it
        """
        faded = new * (FADING ** (10 * seconds.abs())).view(-1, *[1] * (new.ndim - 1))
        fused: Tensor = self.fusion_layer(torch.cat([state, faded], dim=-1))
        return fused


class TemporalAggregation(nn.Module):
    """The sampling of version 1: of several frames, with weights that are tied to the number of cameras."""

    gate = False

    def __init__(self, head: Sparse4DHeadConfig, temporal: bool) -> None:
        """Build the layers; at first all weights are equal.

        temporal: whether past frames are sampled too
        """
        super().__init__()
        dims, points = head.embed_dims, len(FIXED_POINTS) + head.learned_points
        self.shape = (head.cameras, head.num_levels, points, head.num_groups)
        self.kps_generator = KeyPoints(dims, head.learned_points)
        self.temp_module = LinearFusion(dims) if temporal else None
        self.weights_fc = nn.Linear(dims, head.cameras * head.num_levels * points * head.num_groups)
        self.output_proj = nn.Linear(dims, dims)
        self.dropout = nn.Dropout(head.dropout)

    def weights(self, features: Tensor, embeds: Tensor, views: Views) -> Tensor:
        """Return the sampling weights [B, N, P, V, L, G]; those of a missing camera are 0."""
        logits = self.weights_fc(features + embeds).unflatten(-1, self.shape)  # [B, N, V, L, P, G]
        absent = ~views.present[:, None, :, None, None, None]
        return softmax_weights(logits.masked_fill(absent, -torch.inf))

    def fuse(
        self,
        frames: Sequence[Views],
        features: Tensor,
        anchors: Tensor,
        embeds: Tensor,
        encode: Callable[[Tensor], Tensor],
        reweight: DepthReweighting | None,
    ) -> Tensor:
        """Return features of the key points [B, N, P, C], sampled in all frames; arguments as of `forward`."""
        current, *past = frames
        points = self.kps_generator(anchors, features)
        state = torch.zeros_like(points[..., :1])
        begun = np.zeros(len(points), bool)  # [B], whether a stream has had a frame
        for views in (*reversed(past), current):
            age = torch.from_numpy(seconds_between(views.stamps, current.stamps)).to(anchors)  # [B]
            if views is current:
                seen_points, seen_anchors, seen_embeds = points, anchors, embeds
            else:
                transform = past2current(current.reference2global, views.reference2global)
                current2past = torch.from_numpy(transform).to(anchors)
                seen_points = move_points(points, anchors[..., VELOCITY], current2past, age)
                seen_anchors = move_anchors(anchors, current2past, age)
                seen_embeds = encode(seen_anchors)
            weights = self.weights(features, seen_embeds, views)
            sampled = aggregate_features(views.levels, project(seen_points, views), weights, self.gate, per_point=True)
            if reweight is not None:
                sampled = reweight(sampled, seen_anchors[:, :, None, CENTER])
            fused = sampled  # the oldest frame is taken as it is; without any past, the current one is fused with zeros
            last = views is current
            if self.temp_module is not None and (last or begun.any()):
                fused = self.temp_module(state.expand_as(sampled), sampled, age)
                fused = _rows_where(begun | last, fused, sampled)
            exists = np.ones_like(begun) if views.exists is None else views.exists
            state, begun = _rows_where(exists, fused, state), begun | exists
        return state

    def forward(
        self,
        frames: Sequence[Views],
        features: Tensor,
        anchors: Tensor,
        embeds: Tensor,
        encode: Callable[[Tensor], Tensor],
        reweight: DepthReweighting | None,
    ) -> Tensor:
        """Return the features [B, N, C] plus what is sampled.

        frames: the current one, then past ones, newest first
        features: [B, N, C]
        anchors: [B, N, 11]
        embeds: [B, N, C], the encoded anchors
        encode: encodes anchors
        reweight: weights features by depth; None: they are left as they are
        """
        summed = self.fuse(frames, features, anchors, embeds, encode, reweight).sum(dim=2)
        return features + self.dropout(self.output_proj(summed))
