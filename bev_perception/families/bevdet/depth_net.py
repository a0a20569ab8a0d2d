"""From an image's features to a distribution over depths and a context vector, pixel by pixel.

A plain depth net is one convolution. The camera-aware one (Li et al., BEVDepth, AAAI 2023) scales its channels by what
it knows of the camera; the stereo one (Li et al., BEVStereo, AAAI 2023) is also given a cost volume. Modules are named
as in the official checkpoints.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bev_perception.families.bevdet.bev_encoder import ResidualBlock
from bev_perception.families.bevdet.config import STEREO, BEVDetHeadConfig
from bev_perception.types import Cameras

#: numbers that describe a camera, see camera_vector
CAMERA_NUMBERS = 27
#: dilations of the 3x3 branches of the pyramid
DILATIONS = (6, 12, 18)


def camera_vector(cameras: Cameras, sensor2key: np.ndarray, bda: np.ndarray) -> np.ndarray:
    """Return what the depth net knows of each camera, [B, N, 27] float64.

    cameras: of one frame, each matrix [B, N, ...]
    sensor2key: [B, N, 4, 4], optical frame to the key ego frame, before augmentation
    bda: [B, 4, 4], augmentation of the ego frame

    In order: fx, fy, cx, cy; the 2x2 part of source2image with its translation; the 2x2 part and the z scale of the
    augmentation; the rows of sensor2key.
    """
    k, image = cameras.intrinsics, cameras.source2image
    augmentation = np.broadcast_to(bda[:, None], sensor2key.shape)
    numbers = [
        *(k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]),
        *(image[..., 0, 0], image[..., 0, 1], image[..., 0, 2], image[..., 1, 0], image[..., 1, 1], image[..., 1, 2]),
        *(augmentation[..., i, j] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 2))),
    ]
    rows = sensor2key[..., :3, :].reshape(*sensor2key.shape[:2], 12)
    return np.concatenate([np.stack(numbers, axis=-1), rows], axis=-1)


class Mlp(nn.Module):
    """Two linear layers: [K, in] -> [K, out]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Build the layers."""
        super().__init__()
        self.fc1 = nn.Linear(in_channels, out_channels)
        self.fc2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the second layer."""
        return self.fc2(self.fc1(x).relu_())


class CameraGate(nn.Module):
    """Scales the channels of a map by a vector, the gate of squeeze and excitation (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int) -> None:
        """Build the gate."""
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, channels, 1)
        self.conv_expand = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Return x [K, C, h, w] scaled by the gate of vector [K, C]."""
        return x * self.conv_expand(self.conv_reduce(vector[..., None, None]).relu_()).sigmoid()


class PyramidBranch(nn.Module):
    """A dilated convolution, its norm and a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        """Build the branch; dilation 0 means a 1x1 convolution."""
        super().__init__()
        size, reach = (3, dilation) if dilation else (1, 0)
        self.atrous_conv = nn.Conv2d(
            in_channels, out_channels, size, padding=reach, dilation=max(dilation, 1), bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same size."""
        return self.bn(self.atrous_conv(x)).relu_()


class SpatialPyramid(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., DeepLabv3, 2017): [K, C, h, w] -> [K, C, h, w]."""

    def __init__(self, channels: int, width: int) -> None:
        """Build the branches, each `width` channels wide."""
        super().__init__()
        self.aspp1 = PyramidBranch(channels, width, 0)
        self.aspp2, self.aspp3, self.aspp4 = (PyramidBranch(channels, width, dilation) for dilation in DILATIONS)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.conv1 = nn.Conv2d((2 + len(DILATIONS)) * width, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed branches."""
        branches = [branch(x) for branch in (self.aspp1, self.aspp2, self.aspp3, self.aspp4)]
        whole = self.global_avg_pool(x).expand(-1, -1, *x.shape[-2:])
        return self.dropout(self.bn1(self.conv1(torch.cat([*branches, whole], dim=1))).relu_())


class CameraAwareDepthNet(nn.Module):
    """The camera-aware depth net, with or without a cost volume; `in_channels` is also its width."""

    def __init__(self, head: BEVDetHeadConfig, in_channels: int) -> None:
        """Build the net."""
        super().__init__()
        depths, width = head.depth.count, in_channels
        self.reduce_conv = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.context_conv = nn.Conv2d(width, head.context, 1)
        self.bn = nn.BatchNorm1d(CAMERA_NUMBERS)
        self.depth_mlp, self.context_mlp = Mlp(CAMERA_NUMBERS, width), Mlp(CAMERA_NUMBERS, width)
        self.depth_se, self.context_se = CameraGate(width), CameraGate(width)
        cost, shortcut = 0, None
        if head.depth_net == STEREO:
            cost, shortcut = depths, nn.Conv2d(width + depths, width, 1)
            self.cost_volumn_net = nn.Sequential(  # the checkpoints' spelling
                nn.Conv2d(depths, depths, 3, stride=2, padding=1),
                nn.BatchNorm2d(depths),
                nn.Conv2d(depths, depths, 3, stride=2, padding=1),
                nn.BatchNorm2d(depths),
            )
        self.depth_conv = nn.Sequential(
            ResidualBlock(width + cost, width, shortcut=shortcut),
            ResidualBlock(width, width),
            ResidualBlock(width, width),
            SpatialPyramid(width, head.aspp_channels),
            nn.Conv2d(width, depths, 1),
        )

    def forward(self, x: Tensor, cameras: Tensor, cost: Tensor | None = None) -> Tensor:
        """Return the logits of the depths, then the context, [K, D + C, h, w].

        x: [K, in, h, w], features of K images
        cameras: [K, 27], see camera_vector
        cost: [K, D, 4h, 4w], the cost volume of a stereo net
        """
        vectors = self.bn(cameras)
        x = self.reduce_conv(x)
        context = self.context_conv(self.context_se(x, self.context_mlp(vectors)))
        depth = self.depth_se(x, self.depth_mlp(vectors))
        if cost is not None:
            depth = torch.cat([depth, self.cost_volumn_net(cost)], dim=1)
        return torch.cat([self.depth_conv(depth), context], dim=1)
