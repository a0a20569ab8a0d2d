"""Temporal stereo: the cost of every depth of a pixel, from the image before (Li et al., BEVStereo, AAAI 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bev_perception.families.bevdet.view_transform import image2sensor, pixel_rays
from bev_perception.types import Cameras

#: m; a point nearer to the older camera than this, or behind it, is not seen
MIN_DEPTH = 1e-3


@dataclass(frozen=True)
class StereoView:
    """What a later frame is matched with.

    features: [B, N, C, h, w], the backbone's first map
    cameras: of the frame, each matrix [B, N, ...]
    present: [B, N] bool, False for a camera that cannot be matched with; None: all are there
    """

    features: Tensor
    cameras: Cameras
    present: Tensor | None = None


def image2older(new: Cameras, old: Cameras) -> np.ndarray:
    """Return the [B, N, 4, 4] transforms from depth-scaled pixels of new images to those of the same cameras' old."""
    new2global, old2global = (cameras.ego2global @ cameras.sensor2ego for cameras in (new, old))
    return np.linalg.inv(old2global @ image2sensor(old)) @ new2global @ image2sensor(new)


@torch.no_grad()
def cost_volume(
    new: StereoView, old: StereoView, depths: Tensor, image_size: tuple[int, int], unmatched_cost: float
) -> Tensor:
    """Return how well each depth explains the older image, a distribution [B * N, D, h, w] over the depths.

    new: the frame whose depths are asked for
    old: the frame that it is matched with; where a camera is not there, the result is zero
    depths: [D] float64, m
    image_size: (height, width) of the images, pixels
    unmatched_cost: added where the older image has nothing

    The cost of a depth is the sum of the features' absolute differences. As in training, the older image "has nothing"
    where the fourth channel from the end is exactly zero: outside of the image, and at some places within.
    """
    features, older = new.features.flatten(0, 1), old.features.flatten(0, 1)  # [K, C, h, w]
    new2old = torch.from_numpy(image2older(new.cameras, old.cameras)).to(features.device).flatten(0, 1)
    rays = pixel_rays(image_size, (features.shape[-2], features.shape[-1]), features.device)
    rotated = torch.einsum("kij,hwj->khwi", new2old[:, :3, :3], rays)
    last = features.new_tensor([image_size[1] - 1, image_size[0] - 1], dtype=torch.float64)
    costs = []
    for depth in depths:  # one after the other: all samples together would take gigabytes
        seen = rotated * depth + new2old[:, None, None, :3, 3]  # [K, h, w, 3]
        places = 2 * (seen[..., :2] / seen[..., 2:]) / last - 1
        places = torch.where(seen[..., 2:] < MIN_DEPTH, -2.0, places).to(features.dtype)
        sampled = F.grid_sample(older, places, align_corners=True)
        missed = sampled[:, -4] == 0
        costs.append((features - sampled).abs().sum(dim=1) + unmatched_cost * missed)
    volume = (-torch.stack(costs, dim=1)).softmax(dim=1)
    return volume if old.present is None else volume * old.present.flatten()[:, None, None, None]
