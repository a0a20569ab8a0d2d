"""Anchors: the boxes of the instances as numbers, their key points, their move to another frame, their encoding.

An anchor is [..., 11]: x, y, z of its centre (m), the logarithms of its sizes along its own x (length), y (width) and
z (height) (m), sine and cosine of its yaw (not normalised), and its velocity vx, vy, vz (m/s).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ANCHOR_SIZE = 11
#: the numbers of an anchor
CENTER, SIZE, YAW, VELOCITY = slice(0, 3), slice(3, 6), slice(6, 8), slice(8, 11)
SIN, COS = 6, 7
#: the fixed key points, as shares of a box's sizes: its centre, and a point inside of each face
FIXED_POINTS = (
    *((0.0, 0.0, 0.0), (0.45, 0.0, 0.0), (-0.45, 0.0, 0.0), (0.0, 0.45, 0.0), (0.0, -0.45, 0.0)),
    *((0.0, 0.0, 0.45), (0.0, 0.0, -0.45)),
)


def points_in_boxes(anchors: Tensor, offsets: Tensor) -> Tensor:
    """Return points [B, N, P, 3], m, at offsets from the centres of anchors.

    anchors: [B, N, 11]
    offsets: [B, N, P, 3] or [P, 3], shares of the sizes, along the axes of the box; 0.5 is on a face
    """
    x, y, z = (offsets * anchors[..., None, SIZE].exp()).unbind(dim=-1)
    sin, cos = anchors[..., SIN, None], anchors[..., COS, None]
    turned = torch.stack([x * cos - y * sin, x * sin + y * cos, z], dim=-1)
    return anchors[..., None, CENTER] + turned


def transform_points(points: Tensor, source2target: Tensor) -> Tensor:
    """Transform points [B, ..., 3] by matrices [B, 4, 4]."""
    matrices = source2target.view(len(points), *[1] * (points.ndim - 2), 4, 4)
    return (matrices[..., :3, :3] @ points[..., None]).squeeze(-1) + matrices[..., :3, 3]


def move_points(points: Tensor, velocities: Tensor, source2target: Tensor, seconds: Tensor) -> Tensor:
    """Return where points of moving boxes are in another frame.

    points: [B, N, P, 3], m
    velocities: [B, N, 3] of their boxes, m/s
    source2target: [B, 4, 4]
    seconds: [B], time of the source frame minus time of the target frame
    """
    return transform_points(points - velocities[:, :, None] * seconds[:, None, None, None], source2target)


def move_anchors(anchors: Tensor, source2target: Tensor, seconds: Tensor, swap_yaw: bool = False) -> Tensor:
    """Return anchors [B, N, 11] as they are in another frame, moved by their velocities.

    anchors: [B, N, 11]
    source2target: [B, 4, 4]
    seconds: [B], time of the source frame minus time of the target frame
    swap_yaw: whether sine and cosine are stored in each other's place, see config.swap_projected_yaw
    """
    velocities = anchors[..., VELOCITY]
    rotation = source2target[:, None, :3, :3]  # [B, 1, 3, 3]
    centers = transform_points(anchors[..., CENTER] - velocities * seconds[:, None, None], source2target)
    heading = torch.stack([anchors[..., COS], anchors[..., SIN]], dim=-1)
    cos, sin = (rotation[..., :2, :2] @ heading[..., None]).squeeze(-1).unbind(dim=-1)
    yaw = torch.stack([cos, sin] if swap_yaw else [sin, cos], dim=-1)
    turned = (rotation @ velocities[..., None]).squeeze(-1)
    return torch.cat([centers, anchors[..., SIZE], yaw, turned], dim=-1)


class KeyPoints(nn.Module):
    """The points of a box that sample the images: seven fixed ones, and some that the instance places itself."""

    fix_scale: Tensor

    def __init__(self, dims: int, learned: int) -> None:
        """Build the layer that places `learned` points."""
        super().__init__()
        self.learned = learned
        # name as in the official checkpoints; the published values are constants
        self.register_buffer("fix_scale", torch.tensor(FIXED_POINTS), persistent=False)
        self.learnable_fc = nn.Linear(dims, learned * 3)

    def forward(self, anchors: Tensor, features: Tensor) -> Tensor:
        """Return the points [B, N, 7 + learned, 3], m, of anchors [B, N, 11] with features [B, N, C]."""
        placed = self.learnable_fc(features).unflatten(-1, (self.learned, 3)).sigmoid() - 0.5
        fixed = self.fix_scale.expand(*placed.shape[:2], -1, -1)
        return points_in_boxes(anchors, torch.cat([fixed, placed], dim=2))


def encoder_layers(in_dims: int, dims: int, inner: int, outer: int) -> list[nn.Module]:
    """Return `outer` times (`inner` times (linear, ReLU), layer norm), from in_dims to dims."""
    layers: list[nn.Module] = []
    for _ in range(outer):
        for _ in range(inner):
            layers += [nn.Linear(in_dims, dims), nn.ReLU(inplace=True)]
            in_dims = dims
        layers.append(nn.LayerNorm(dims))
    return layers


class AnchorEncoder(nn.Module):
    """Encode anchors [..., 11] as [..., C]; all stages share it."""

    def __init__(self, dims: int, concatenated: bool) -> None:
        """Build the encoder.

        concatenated: whether centre, size, yaw and velocity have their own share of the C numbers (version 3), or are
            added up
        """
        super().__init__()
        self.concatenated = concatenated
        widths = (dims // 2, dims // 8, dims // 8, dims // 4) if concatenated else (dims,) * 4
        loops = 4 if concatenated else 2
        self.pos_fc, self.size_fc, self.yaw_fc, self.vel_fc = (
            nn.Sequential(*encoder_layers(count, width, 1, loops))
            for count, width in zip((3, 3, 2, 3), widths, strict=True)
        )
        if not concatenated:
            self.output_fc = nn.Sequential(*encoder_layers(dims, dims, 1, 2))

    def forward(self, anchors: Tensor) -> Tensor:
        """Return the encoding."""
        parts = (
            self.pos_fc(anchors[..., CENTER]),
            self.size_fc(anchors[..., SIZE]),
            self.yaw_fc(anchors[..., YAW]),
            self.vel_fc(anchors[..., VELOCITY]),
        )
        if self.concatenated:
            return torch.cat(parts, dim=-1)
        encoded: Tensor = self.output_fc(sum(parts))
        return encoded
