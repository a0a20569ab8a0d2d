"""The CenterPoint head (Yin et al., CVPR 2021): maps of class scores and box codes over a grid seen from above."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bev_perception.families.bevdet.config import CenterPointConfig

#: probability of every class at every cell before training
PRIOR = 0.1


@dataclass(frozen=True)
class TaskMaps:
    """What the head says of one task's classes at each cell (row y, column x).

    reg: [B, 2, Y, X], x and y of the centre from the lower corner of the cell, in cells
    height: [B, 1, Y, X], z of the centre, m
    dim: [B, 3, Y, X], logarithms of length, width, height (m)
    rot: [B, 2, Y, X], sine and cosine of the yaw
    vel: [B, 2, Y, X], vx, vy, m/s
    heatmap: [B, classes, Y, X], logits
    """

    reg: Tensor
    height: Tensor
    dim: Tensor
    rot: Tensor
    vel: Tensor
    heatmap: Tensor

    @property
    def codes(self) -> Tensor:
        """[B, 10, Y, X], all but the heatmap."""
        return torch.cat([self.reg, self.height, self.dim, self.rot, self.vel], dim=1)


#: channels of each branch but the heatmap
CHANNELS = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}


class CenterPointHead(nn.Module):
    """A shared convolution, and for each task a branch of two convolutions for every field of TaskMaps."""

    def __init__(self, in_channels: int, config: CenterPointConfig) -> None:
        """Build the head with fresh weights.

        in_channels: of the map that it takes
        config: its settings
        """
        super().__init__()
        self.shared_conv = _conv_norm(in_channels, config.shared_channels)
        self.task_heads = nn.ModuleList(TaskBranches(config.shared_channels, len(task)) for task in config.tasks)

    def forward(self, features: Tensor) -> tuple[TaskMaps, ...]:
        """Return the maps of each task from features [B, in_channels, Y, X]."""
        shared = self.shared_conv(features)
        return tuple(branches(shared) for branches in self.task_heads)


class TaskBranches(nn.ModuleDict):
    """Two convolutions for each field of TaskMaps."""

    def __init__(self, channels: int, classes: int) -> None:
        """Build the branches with fresh weights.

        channels: of the map that they take
        classes: number of classes of the task
        """
        heatmap = nn.Conv2d(channels, classes, 3, padding=1)
        nn.init.constant_(heatmap.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]
        last = {name: nn.Conv2d(channels, n, 3, padding=1) for name, n in CHANNELS.items()} | {"heatmap": heatmap}
        super().__init__({name: nn.Sequential(_conv_norm(channels, channels), conv) for name, conv in last.items()})

    def forward(self, shared: Tensor) -> TaskMaps:
        """Return the maps of the task from features [B, channels, Y, X]."""
        return TaskMaps(**{name: branch(shared) for name, branch in self.items()})


def _conv_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(inplace=True),
        )
    )
