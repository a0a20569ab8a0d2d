"""Layers of query decoders that several families share.

Shapes: B batch, T frames, Q queries, G groups, P points per group and frame, L pyramid levels, C channels.
A query's box is [..., 10]: x, y, z relative to the range (0..1), the logarithms of its three sizes (m), sin and cos of
its yaw, and its velocity vx, vy (m/s).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bev_perception.ops.sampling import LevelsByFrame, sample_features

PcRange = tuple[float, float, float, float, float, float]


def decode_centers(relative: Tensor, pc_range: PcRange) -> Tensor:
    """Convert centres relative to a range (0..1) to metres, both [..., 3].

    pc_range: x, y, z low, then high, m
    """
    axes = zip(relative.unbind(dim=-1), pc_range[:3], pc_range[3:], strict=True)
    return torch.stack([x * (high - low) + low for x, low, high in axes], dim=-1)


def encode_centers(centers: Tensor, pc_range: PcRange) -> Tensor:
    """Invert decode_centers; centres outside of the range are below 0 or above 1."""
    axes = zip(centers.unbind(dim=-1), pc_range[:3], pc_range[3:], strict=True)
    return torch.stack([(x - low) / (high - low) for x, low, high in axes], dim=-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the logit of x [...]; to keep it finite, x is clamped to 0..1, and x and 1 - x to at least eps."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


class PositionEncoding(nn.Sequential):
    """Encode centres [..., 3] as features [..., C]."""

    def __init__(self, dims: int) -> None:
        """Build the two layers."""
        super().__init__(
            nn.Linear(3, dims),
            nn.LayerNorm(dims),
            nn.ReLU(inplace=True),
            nn.Linear(dims, dims),
            nn.LayerNorm(dims),
            nn.ReLU(inplace=True),
        )


class FeedForward(nn.Module):
    """Two linear layers with a residual connection, without norm: [..., C] -> [..., C]."""

    def __init__(self, dims: int, hidden: int, dropout: float) -> None:
        """Build the layers; `hidden` is the inner width."""
        super().__init__()
        # names as in the official checkpoints: layers.0.0, layers.1
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(dims, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            nn.Linear(hidden, dims),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus the layers' output."""
        return x + self.layers(x)


class ScaleAdaptiveSelfAttention(nn.Module):
    """Self-attention in which each head chooses its range per query (Liu et al., ICCV 2023, section 3.2).

    The distance between two queries' centres in the ground plane, times a factor tau that the attending query predicts
    for each head, is subtracted from the attention logit.
    """

    def __init__(self, dims: int, heads: int, dropout: float) -> None:
        """Build the attention; heads start with ranges from nearly global to a few metres, equal for all queries."""
        super().__init__()
        # names as in the official checkpoints: attention.attn.in_proj_weight
        self.attention = nn.ModuleDict({"attn": nn.MultiheadAttention(dims, heads, dropout, batch_first=True)})
        self.gen_tau = nn.Linear(dims, heads)
        nn.init.zeros_(self.gen_tau.weight)
        nn.init.uniform_(self.gen_tau.bias, 0.0, 2.0)

    def forward(self, features: Tensor, centers: Tensor, blocked: Tensor | None = None) -> Tensor:
        """Return the features plus what they attend to, [B, Q, C].

        features: [B, Q, C]
        centers: [B, Q, >=2], m; no gradient flows into them
        blocked: [Q, Q] bool, True where a query (row) must not attend to another (column); None: all attend to all
        """
        distances = distances_between(centers.detach()[..., :2])  # [B, Q, Q] m
        tau = self.gen_tau(features).transpose(1, 2)  # [B, heads, Q]
        bias = -distances[:, None] * tau[..., None]  # [B, heads, Q, Q]
        if blocked is not None:
            bias = bias.masked_fill(blocked, -torch.inf)
        attended, _ = self.attention["attn"](
            features, features, features, attn_mask=bias.flatten(0, 1), need_weights=False
        )
        return features + attended


def distances_between(places: Tensor) -> Tensor:
    """Return the distances [B, Q, Q] between places [B, Q, 2]."""
    if torch.compiler.is_compiling():  # a compiler fuses plain arithmetic, and every runtime has it
        x, y = places.unbind(dim=-1)
        return ((x[:, :, None] - x[:, None]).square() + (y[:, :, None] - y[:, None]).square()).sqrt()
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


class SamplingPoints(nn.Module):
    """Predict where each query samples: points around its box, moved by its velocity, and weights of pyramid levels."""

    def __init__(self, dims: int, groups: int, points: int, levels: int, pc_range: PcRange) -> None:
        """Build the layers; the points start spread at random inside the box."""
        super().__init__()
        self.groups, self.points = groups, points
        self.pc_range = pc_range
        self.sampling_offset = nn.Linear(dims, groups * points * 3)
        self.scale_weights = nn.Linear(dims, groups * points * levels)
        nn.init.zeros_(self.sampling_offset.weight)
        nn.init.uniform_(self.sampling_offset.bias, -0.5, 0.5)

    def forward(self, features: Tensor, boxes: Tensor, time_differences: Tensor, legacy: bool) -> tuple[Tensor, Tensor]:
        """Return points [B, T, Q, G, P, 3] in m and level weights [B, T, Q, G, P, L].

        features: [B, Q, C]
        boxes: [B, Q, 10]
        time_differences: [B, T], s, current minus past
        legacy: whether to rotate the offsets clockwise, as the oldest checkpoints were trained
        """
        batch, queries, _ = features.shape
        offsets = self.sampling_offset(features).view(batch, queries, self.groups, self.points, 3)
        now = points_in_boxes(offsets, boxes, self.pc_range, legacy)  # [B, Q, G, P, 3]
        moved = boxes[..., 8:10].detach()[:, None] * time_differences[:, :, None, None]  # [B, T, Q, 2] m
        shift = F.pad(moved, (0, 1))[:, :, :, None, None]  # [B, T, Q, 1, 1, 3]
        scores = self.scale_weights(features)
        return now[:, None] - shift, weigh_levels(scores, self.groups, self.points, time_differences.shape[1])


def points_in_boxes(offsets: Tensor, boxes: Tensor, pc_range: PcRange, legacy: bool) -> Tensor:
    """Return points [B, Q, G, P, 3], m, at offsets from the centres of boxes.

    offsets: [B, Q, G, P, 3] in box sizes, along the box's axes; 0.5 is on a face
    boxes: [B, Q, 10]
    pc_range: see decode_centers
    legacy: see SamplingPoints
    """
    local = offsets * boxes[:, :, None, None, 3:6].exp()
    yaw = torch.atan2(boxes[..., 6], boxes[..., 7])[:, :, None, None]
    sin, cos = (-yaw.sin() if legacy else yaw.sin()), yaw.cos()
    x, y, z = local.unbind(dim=-1)
    turned = torch.stack([x * cos - y * sin, x * sin + y * cos, z], dim=-1)
    return decode_centers(boxes[..., :3], pc_range)[:, :, None, None] + turned


def weigh_levels(scores: Tensor, groups: int, points: int, frames: int) -> Tensor:
    """Return level weights [B, T, Q, G, P, L] from scores [B, Q, G*P*L]; the weights of a point add up to 1."""
    weights = scores.unflatten(-1, (groups, points, -1)).softmax(dim=-1)
    return level_weights_by_frame(weights, frames)


def level_weights_by_frame(weights: Tensor, frames: int) -> Tensor:
    """Repeat level weights [B, Q, G, P, L] for T frames, in the order that the official checkpoints were trained with.

    The reference implementation lays out the samples as (frame, group) but the weights as (group, frame), so that frame
    t, group g takes the weights of group (t * G + g) // T. All released checkpoints were trained this way; correcting
    the order would break them.

    Returns [B, T, Q, G, P, L].
    """
    groups = weights.shape[2]
    taken = torch.arange(frames * groups, device=weights.device) // frames
    return weights.index_select(2, taken).unflatten(2, (frames, groups)).transpose(1, 2)


@dataclass(frozen=True)
class EncodedViews:
    """The encoded images that queries sample.

    levels_by_frame: see sample_features
    reference2image: see sample_features
    image_size: see sample_features
    """

    levels_by_frame: LevelsByFrame
    reference2image: Tensor
    image_size: tuple[int, int]

    def sample(self, points: Tensor, scores: Tensor) -> Tensor:
        """Return features [B, Q, G, T*P, C/G] at points that do not move.

        points: [B, Q, G, P, 3], m, the same in all frames
        scores: [B, Q, G*P*L], of the levels; see weigh_levels
        """
        frames, (groups, per_group) = self.reference2image.shape[1], points.shape[2:4]
        everywhere = points[:, None].expand(-1, frames, -1, -1, -1, -1)
        weights = weigh_levels(scores, groups, per_group, frames)
        return sample_features(self.levels_by_frame, everywhere, self.reference2image, weights, self.image_size)


#: most numbers in the matrices that are predicted at once on a CPU: beyond that, buffers are read from memory again
#: and again
CHUNK = 10_000_000


class AdaptiveMixing(nn.Module):
    """Mix sampled features over channels, then over points, with matrices that are predicted from each query.

    See Liu et al., ICCV 2023, section 3.4, after AdaMixer (Gao et al., CVPR 2022).
    """

    def __init__(self, dims: int, groups: int, in_points: int, out_points: int) -> None:
        """Build the layers; in_points is the number of samples per group, over all frames."""
        super().__init__()
        self.groups, self.in_points, self.out_points = groups, in_points, out_points
        self.width = dims // groups
        self.parameter_generator = nn.Linear(dims, groups * (self.width**2 + in_points * out_points))
        self.out_proj = nn.Linear(groups * out_points * self.width, dims)
        nn.init.zeros_(self.parameter_generator.weight)

    def forward(self, sampled: Tensor, features: Tensor) -> Tensor:
        """Return features [B, Q, C] plus the mixed samples; sampled: [B, Q, G, in_points, C/G]."""
        if torch.is_grad_enabled() or features.device.type != "cpu":
            return self._mix(sampled, features)
        size = max(1, CHUNK // (len(features) * self.parameter_generator.out_features))  # queries
        chunks = zip(sampled.split(size, dim=1), features.split(size, dim=1), strict=True)
        return torch.cat([self._mix(*chunk) for chunk in chunks], dim=1)

    def _mix(self, sampled: Tensor, features: Tensor) -> Tensor:
        batch, queries = features.shape[:2]
        parameters = self.parameter_generator(features).view(batch * queries * self.groups, -1)
        channel, spatial = parameters.split([self.width**2, self.in_points * self.out_points], dim=1)
        x = sampled.flatten(0, 2)  # [B*Q*G, in_points, C/G]
        x = torch.bmm(x, channel.view(-1, self.width, self.width))
        x = F.layer_norm(x, x.shape[1:]).relu_()
        x = torch.bmm(spatial.view(-1, self.out_points, self.in_points), x)
        x = F.layer_norm(x, x.shape[1:]).relu_()
        return features + self.out_proj(x.view(batch, queries, -1))
