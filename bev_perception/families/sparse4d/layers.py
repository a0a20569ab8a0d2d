"""The layers of a decoder stage beside the sampling: attention, feed-forward, refinement."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bev_perception.families.sparse4d.anchors import ANCHOR_SIZE, VELOCITY, encoder_layers
from bev_perception.families.sparse4d.outputs import Stage


class Attention(nn.Module):
    """Multi-head attention with a residual connection."""

    def __init__(self, dims: int, heads: int, dropout: float) -> None:
        """Build the attention; `dims` is the width of queries, keys and values."""
        super().__init__()
        self.attn = nn.MultiheadAttention(dims, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, identity: Tensor, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None
    ) -> Tensor:
        """Return `identity` plus what the queries attend to, [B, n, dims].

        blocked: [n, m] bool, True where a query (row) must not attend to a key (column); None: all attend to all
        """
        attended, _ = self.attn(query, key, value, attn_mask=blocked, need_weights=False)
        return identity + self.dropout(attended)


class AsymmetricFeedForward(nn.Module):
    """Layer norm, then two linear layers, and beside them one in place of a residual connection: 2C to C numbers."""

    def __init__(self, dims: int, hidden: int, dropout: float) -> None:
        """Build the layers; `dims` is C, `hidden` the inner width."""
        super().__init__()
        self.pre_norm = nn.LayerNorm(2 * dims)
        # names as in the official checkpoints: layers.0.0, layers.1
        self.layers = nn.Sequential(
            nn.Sequential(nn.Linear(2 * dims, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)),
            nn.Linear(hidden, dims),
            nn.Dropout(dropout),
        )
        self.identity_fc = nn.Linear(2 * dims, dims)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., C] of x [..., 2C]."""
        x = self.pre_norm(x)
        fed: Tensor = self.identity_fc(x) + self.layers(x)
        return fed


class Scale(nn.Module):
    """A learnt factor for each number."""

    def __init__(self, size: int) -> None:
        """Start with factors of 1."""
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., size] times the factors."""
        return x * self.scale


class Refinement(nn.Module):
    """Correct the boxes of instances, and predict their classes.

    corrects_yaw: whether sine and cosine of the yaw are corrected; else they are predicted anew
    """

    def __init__(self, dims: int, num_classes: int, corrects_yaw: bool, quality: bool) -> None:
        """Build the branches; `quality` adds that of centerness and yawness."""
        super().__init__()
        self.added = 8 if corrects_yaw else 6  # the first numbers of an anchor are added to
        self.layers = nn.Sequential(*encoder_layers(dims, dims, 2, 2), nn.Linear(dims, ANCHOR_SIZE), Scale(ANCHOR_SIZE))
        self.cls_layers = nn.Sequential(*encoder_layers(dims, dims, 1, 2), final := nn.Linear(dims, num_classes))
        nn.init.constant_(final.bias, -math.log(99))  # every class starts at a probability of 1 %
        if quality:
            self.quality_layers = nn.Sequential(*encoder_layers(dims, dims, 1, 2), nn.Linear(dims, 2))
        self.quality = quality

    def forward(self, features: Tensor, anchors: Tensor, embeds: Tensor, intervals: Tensor, classify: bool) -> Stage:
        """Return the refined boxes, and the classes and quality if asked for.

        features: [B, n, C]
        anchors: [B, n, 11]
        embeds: [B, n, C], the encoded anchors
        intervals: [B], s; the velocity is corrected by a displacement over this time
        classify: whether to predict classes and quality
        """
        found = features + embeds
        correction = self.layers(found)
        added, replaced = correction[..., : self.added], correction[..., self.added : VELOCITY.start]
        velocities = correction[..., VELOCITY] / intervals[:, None, None] + anchors[..., VELOCITY]
        boxes = torch.cat([added + anchors[..., : self.added], replaced, velocities], dim=-1)
        logits = self.cls_layers(features) if classify else None
        quality = self.quality_layers(found) if classify and self.quality else None
        return Stage(boxes, logits, quality)
