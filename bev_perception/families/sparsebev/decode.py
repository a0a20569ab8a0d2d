"""Decode the raw outputs of the model into boxes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bev_perception.families.sparsebev.config import DecodeConfig
from bev_perception.models.protocol import NotFiniteError
from bev_perception.types import Boxes3D


def decode_boxes(
    logits: Tensor,
    boxes: Tensor,
    finite: Tensor,
    config: DecodeConfig,
    class_names: tuple[str, ...],
    legacy: bool,
) -> Boxes3D:
    """Return the best boxes in the model's reference frame; one query may give several, of different classes.

    The max_num boxes with the highest scores are selected first; of these, the ones above the threshold and inside
    post_center_range are kept.

    logits: [Q, num_classes]
    boxes: [Q, 10]: cx, cy (m), log d0, log d1, cz (m), log d2, sin, cos, vx, vy (m/s)
    finite: [] bool, whether everything that they were computed from is finite
    config: limits on the boxes
    class_names: names of the classes
    legacy: whether the weights are of version "v0.17.1", in which d0 is the width and yaw counts clockwise from -y

    Raises NotFiniteError for outputs, or features, that are NaN or infinite.
    """
    num_classes = logits.shape[1]
    scores, index = logits.sigmoid().flatten().topk(min(config.max_num, logits.numel()))
    labels = index % num_classes
    taken = boxes[index // num_classes]
    # one transfer from the device: [n, 13]; labels are small enough to be exact as floats
    columns = (x[:, None].to(taken.dtype) for x in (finite.expand(len(scores)), scores, labels))
    values = torch.cat([*columns, taken], dim=1).double().cpu().numpy()
    if not values[:, 0].all() or not np.isfinite(values).all():
        raise NotFiniteError("the model's features or outputs hold NaN or infinity; look at the weights and the images")
    found = to_boxes(values[:, 1], values[:, 2].astype(np.int64), values[:, 3:], class_names, legacy)
    low, high = np.array(config.post_center_range[:3]), np.array(config.post_center_range[3:])
    inside = (found.centers >= low).all(axis=1) & (found.centers <= high).all(axis=1)
    found = found.select((found.scores > config.score_threshold) & inside)
    if not np.isfinite(found.sizes).all():
        raise NotFiniteError("the model says of boxes that they are infinitely large; look at the weights")
    return found


def to_boxes(
    scores: np.ndarray, labels: np.ndarray, codes: np.ndarray, class_names: tuple[str, ...], legacy: bool
) -> Boxes3D:
    """Return boxes from scores [n], labels [n] and codes [n, 10]; see decode_boxes."""
    centers = codes[:, [0, 1, 4]]
    with np.errstate(over="ignore"):  # decode_boxes checks the result
        sizes = np.exp(codes[:, [2, 3, 5]])
    yaws = np.arctan2(codes[:, 6], codes[:, 7])
    if legacy:
        sizes = sizes[:, [1, 0, 2]]
        yaws = -yaws - math.pi / 2
    return Boxes3D(centers, sizes, yaws, codes[:, 8:10], scores, labels, class_names)
