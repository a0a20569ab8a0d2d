"""Modulated deformable convolution (Zhu et al., Deformable ConvNets v2, CVPR 2019) in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: side of the kernel, and number of its taps
KERNEL = 3
TAPS = KERNEL**2


def deformable_convolution(x: Tensor, offsets: Tensor, factors: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return a 3x3 convolution whose taps are moved and scaled, [B, O, h', w'].

    x: [B, C, h, w]; zeros around it
    offsets: [B, 18, h', w'], (dy, dx) of each tap, in cells of x
    factors: [B, 9, h', w'], on the value of each tap
    weight: [O, C, 3, 3]
    stride: of the convolution
    """
    height, width = x.shape[-2:]
    dtype = torch.promote_types(x.dtype, torch.float32)  # half precision would blur the positions
    moved = offsets.to(dtype).unflatten(1, (TAPS, 2))  # [B, 9, 2, h', w']
    rows, columns = (torch.arange(size, device=x.device, dtype=dtype) for size in moved.shape[-2:])
    tap = torch.arange(TAPS, device=x.device)
    y = moved[:, :, 0] + (rows * stride)[:, None] + (tap // KERNEL - 1).view(-1, 1, 1)  # [B, 9, h', w']
    x_ = moved[:, :, 1] + columns * stride + (tap % KERNEL - 1).view(-1, 1, 1)
    grid = torch.stack([(2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    sampled = F.grid_sample(
        x.to(dtype), grid.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=False
    )  # [B, C, 9 * h', w']
    taken = sampled.unflatten(2, (TAPS, -1)) * factors[:, None]  # [B, C, 9, h', w']
    out = weight.flatten(1) @ taken.flatten(1, 2).flatten(2).to(weight.dtype)
    return out.unflatten(-1, moved.shape[-2:])


class DeformableConv2d(nn.Module):
    """A 3x3 convolution without bias that predicts, for every place, where its taps are and how much they count."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Build the layer; at first its taps are at their regular places, and count half."""
        super().__init__()
        self.stride = stride
        # names as in the official checkpoints: weight, conv_offset
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, KERNEL, KERNEL))
        self.conv_offset = nn.Conv2d(in_channels, 3 * TAPS, KERNEL, stride, padding=1)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Return the taps to their regular places."""
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, out_channels, h / stride, w / stride] of x [B, in_channels, h, w]."""
        offsets, factors = self.conv_offset(x).split([2 * TAPS, TAPS], dim=1)
        return deformable_convolution(x, offsets, factors.sigmoid(), self.weight, self.stride)
