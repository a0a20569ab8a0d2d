"""Raw outputs of a detector become boxes; boxes move between frames and get their nuScenes attribute."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bev_perception.config import DecodeConfig
from bev_perception.types import Boxes3D

#: m/s; what is faster than this counts as moving
MOVING_SPEED = 0.2

_VEHICLES = frozenset({"car", "truck", "construction_vehicle", "bus", "trailer"})
_CYCLES = frozenset({"motorcycle", "bicycle"})


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


def to_ego(boxes: Boxes3D, reference2ego: np.ndarray) -> Boxes3D:
    """Return the boxes in another frame: reference2ego [4, 4] moves centres and turns yaws and velocities.

    The transform may tilt; a box stays upright and keeps the heading that its front has in the new ground plane.
    """
    rotation = reference2ego[:3, :3]
    centers = boxes.centers @ rotation.T + reference2ego[:3, 3]
    headings = np.stack([np.cos(boxes.yaws), np.sin(boxes.yaws)], axis=1) @ rotation[:2, :2].T  # [n, 2]
    velocities = boxes.velocities @ rotation[:2, :2].T
    yaws = np.arctan2(headings[:, 1], headings[:, 0])
    return Boxes3D(centers, boxes.sizes, yaws, velocities, boxes.scores, boxes.labels, boxes.class_names)


def attribute_of(class_name: str, speed: float) -> str:
    """Return the nuScenes attribute of an object by its class and its speed over ground (m/s); "" if it has none."""
    moving = speed > MOVING_SPEED
    if class_name == "bus":
        return "vehicle.moving" if moving else "vehicle.stopped"
    if class_name in _VEHICLES:
        return "vehicle.moving" if moving else "vehicle.parked"
    if class_name in _CYCLES:
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if class_name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    return ""
