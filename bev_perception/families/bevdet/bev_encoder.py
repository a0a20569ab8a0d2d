"""The networks on the grid: residual stages and the neck that joins their maps, in two and in three dimensions.

Modules are named as in the official checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bev_perception.families.bevdet.config import EncoderConfig
from bev_perception.models.necks import LSSNeck, conv_norm_relu


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, in, h, w] -> [B, out, h / stride, w / stride].

    shortcut: what the input passes through on its way around; None: nothing
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, shortcut: nn.Module | None = None) -> None:
        """Build the block."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        around = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu_()
        return (self.bn2(self.conv2(x)) + around).relu_()


class ConvNorm3d(nn.Sequential):
    """A convolution in three dimensions without a bias, and its batch norm."""

    def __init__(self, in_channels: int, out_channels: int, size: int = 3, stride: int = 1) -> None:
        """Build both."""
        conv = nn.Conv3d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm3d(out_channels)))


class ResidualBlock3d(nn.Module):
    """ResidualBlock in three dimensions: [B, in, z, y, x] -> [B, out, z / stride, y / stride, x / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, shortcut: nn.Module | None = None) -> None:
        """Build the block."""
        super().__init__()
        self.conv1 = ConvNorm3d(in_channels, out_channels, stride=stride)
        self.conv2 = ConvNorm3d(out_channels, out_channels)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        around = x if self.downsample is None else self.downsample(x)
        x = self.conv1(x).relu_()
        return (self.conv2(x) + around).relu_()


class Stages(nn.Module):
    """Stages of residual blocks, whose outputs are all returned.

    The first block of every stage has a convolution in its shortcut: with a bias and without a norm in two dimensions,
    with a norm in three.
    """

    def __init__(
        self,
        volumetric: bool,
        in_channels: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        strides: Sequence[int],
    ) -> None:
        """Build the stages."""
        super().__init__()
        self.layers = nn.ModuleList()
        for width, count, stride in zip(channels, blocks, strides, strict=True):
            stage: list[nn.Module] = []
            for i in range(count):
                if volumetric:
                    around = ConvNorm3d(in_channels, width, stride=stride) if i == 0 else None
                    stage.append(ResidualBlock3d(in_channels, width, stride if i == 0 else 1, around))
                else:
                    conv = nn.Conv2d(in_channels, width, 3, stride, padding=1) if i == 0 else None
                    stage.append(ResidualBlock(in_channels, width, stride if i == 0 else 1, conv))
                in_channels = width
            self.layers.append(nn.Sequential(*stage))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the output of every stage for x [B, in, (z,) y, x]."""
        outputs = []
        for stage in self.layers:
            x = stage(x)
            outputs.append(x)
        return outputs


class BevNeck(LSSNeck):
    """Joins the first and last map of the stages and doubles their resolution: -> [B, out, Y, X]."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        """Build the neck."""
        super().__init__(in_channels, 2 * out_channels)
        upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        reduce = conv_norm_relu(2 * out_channels, out_channels)
        self.up2 = nn.Sequential(upsample, *reduce, nn.Conv2d(out_channels, out_channels, 1))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the joined map of maps [B, in_channels[i], y, x]."""
        return [self.up2(super().forward(maps)[0])]


class VolumeNeck(nn.Module):
    """Enlarges all maps of volumetric stages to the size of the first, and mixes them: -> [B, out, Z, Y, X]."""

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        """Build the neck."""
        super().__init__()
        self.conv = ConvNorm3d(sum(in_channels), out_channels, size=1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the joined map of maps [B, in_channels[i], z, y, x]."""
        size = maps[0].shape[-3:]
        enlarged = [F.interpolate(x, size=size, mode="trilinear", align_corners=True) for x in maps[1:]]
        return [self.conv(torch.cat([maps[0], *enlarged], dim=1)).relu_()]


def build_pre_process(config: EncoderConfig, channels: int) -> Stages:
    """Return the network on each frame's own map; it keeps channels and size."""
    return Stages(config.volumetric, channels, (channels,), (config.pre_blocks,), (1,))


def build_stages(config: EncoderConfig, in_channels: int) -> Stages:
    """Return the stages on the joined maps."""
    return Stages(config.volumetric, in_channels, config.channels, config.blocks, config.strides)


def build_bev_neck(config: EncoderConfig) -> BevNeck | VolumeNeck:
    """Return the neck after the stages."""
    if config.volumetric:
        return VolumeNeck(config.channels, config.out_channels)
    return BevNeck((config.channels[0], config.channels[-1]), config.out_channels)
