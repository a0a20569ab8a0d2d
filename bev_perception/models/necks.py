"""Necks: turn a backbone's feature maps into a pyramid whose levels all have the same number of channels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bev_perception.config import ConfigError, NeckConfig


class FPN(nn.Module):
    """Feature pyramid network (Lin et al., CVPR 2017) without norms or activations.

    in_channels: channels of the backbone's maps, finest first
    out_channels: channels of every level
    num_outs: number of levels; each one beyond the backbone's maps is the level before it at half the size, and fewer
        than the maps are the finest ones
    convolved: whether a level beyond the maps is a convolution of the level before it, or every other cell of it
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int, convolved: bool = False) -> None:
        """Build the neck with fresh weights."""
        super().__init__()
        extra = max(0, num_outs - len(in_channels))
        strides = [1] * min(len(in_channels), num_outs) + [2] * (extra if convolved else 0)
        self.subsampled_levels = 0 if convolved else extra
        # names as in the official checkpoints: lateral_convs.0.conv.weight
        self.lateral_convs = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, out_channels, 1))) for channels in in_channels
        )
        self.fpn_convs = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(out_channels, out_channels, 3, stride, padding=1)))
            for stride in strides
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return num_outs levels [B, out_channels, h, w], finest first, from maps [B, in_channels[i], h, w]."""
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            finer = laterals[i - 1]
            laterals[i - 1] = finer + F.interpolate(laterals[i], size=finer.shape[-2:], mode="nearest")
        levels = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)]
        for conv in self.fpn_convs[len(laterals) :]:
            levels.append(conv(levels[-1]))
        for _ in range(self.subsampled_levels):
            levels.append(levels[-1][..., ::2, ::2])
        return levels


def conv_norm_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Return a 3x3 convolution, its batch norm and a ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


class LSSNeck(nn.Module):
    """Joins the last of several maps, enlarged, with the first (Philion and Fidler, Lift Splat Shoot, ECCV 2020).

    in_channels: of the first map and of the last
    out_channels: of the result
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int) -> None:
        """Build the neck with fresh weights."""
        super().__init__()
        self.conv = nn.Sequential(
            *conv_norm_relu(in_channels[0] + in_channels[-1], out_channels), *conv_norm_relu(out_channels, out_channels)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one map [B, out_channels, h, w], as large as the first of maps [B, in_channels[i], h_i, w_i]."""
        coarse = F.interpolate(maps[-1], size=maps[0].shape[-2:], mode="bilinear", align_corners=True)
        return [self.conv(torch.cat([maps[0], coarse], dim=1))]


def build_neck(config: NeckConfig, in_channels: Sequence[int]) -> nn.Module:
    """Build the neck that `config` names.

    in_channels: channels of the backbone's maps, finest first

    Raises ConfigError for an unknown type and for levels that the neck cannot output.
    """
    if config.type == "fpn":
        return FPN(in_channels, config.out_channels, config.num_outs, config.extra == "convolution")
    if config.type == "lss":
        if (len(in_channels), config.num_outs) != (2, 1):
            raise ConfigError(
                f"neck: 'lss' makes one map of two, not {config.num_outs} of {len(in_channels)}; set num_outs to 1"
            )
        return LSSNeck(in_channels, config.out_channels)
    if config.type != "none":
        raise ConfigError(f"unknown neck type {config.type!r}; known: fpn, lss, none")
    if list(in_channels) != [config.out_channels] * config.num_outs:
        raise ConfigError(
            f"neck: without one, num_outs must be {len(in_channels)} and out_channels {in_channels[-1]}, "
            f"as the backbone gives {list(in_channels)}; or set neck.type to 'fpn'"
        )
    return nn.Identity()
