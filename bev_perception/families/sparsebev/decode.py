"""Raw outputs of a detector become boxes; boxes move between frames and get their nuScenes attribute."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bev_perception.families.sparsebev.config import DecodeConfig
from bev_perception.types import Boxes3D


def decode_boxes(
    logits: Tensor, boxes: Tensor, config: DecodeConfig, class_names: tuple[str, ...], legacy: bool
) -> Boxes3D:
    """Return the best boxes in the model's reference frame; one query may give several, of different classes.

    logits: [Q, num_classes].  boxes: [Q, 10]: cx, cy (m), log d0, log d1, cz (m), log d2, sin, cos, vx, vy (m/s).
    legacy: the weights are of version "v0.17.1", which calls the width d0 and counts yaw clockwise from -y.
    The best max_num are taken first; of those stay the ones above the threshold and inside post_center_range.
    """
    num_classes = logits.shape[1]
    scores, index = logits.sigmoid().flatten().topk(min(config.max_num, logits.numel()))
    labels = index % num_classes
    taken = boxes[index // num_classes]
    # one transfer from the device: [n, 12], the labels are small enough to be exact
    packed = torch.cat([scores[:, None], labels[:, None].to(taken.dtype), taken], dim=1)
    values = packed.double().cpu().numpy()
    score, label, code = values[:, 0], values[:, 1].astype(np.int64), values[:, 2:]

    centers = code[:, [0, 1, 4]]
    sizes = np.exp(code[:, [2, 3, 5]])
    yaws = np.arctan2(code[:, 6], code[:, 7])
    if legacy:
        sizes = sizes[:, [1, 0, 2]]
        yaws = -yaws - math.pi / 2
    low, high = np.array(config.post_center_range[:3]), np.array(config.post_center_range[3:])
    keep = (score > config.score_threshold) & (centers >= low).all(axis=1) & (centers <= high).all(axis=1)
    return Boxes3D(centers, sizes, yaws, code[:, 8:10], score, label, class_names).select(keep)
