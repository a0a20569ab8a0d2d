"""Drop further boxes of one object: what a detector without suppression of its own gives twice.

The best box of an object stays, and every other box of its class that lies within a distance of it, or overlaps it
seen from above. Boxes of different classes never suppress one another.
"""

from __future__ import annotations

import numpy as np
import torch

from bev_perception.config import NMS
from bev_perception.ops.rotated_nms import circle_nms, rotated_nms
from bev_perception.types import Boxes3D

#: m between the centres of two boxes of a class up to which they are one object. A little less than the distance
#: at which two real ones stand side by side: parked cars, people who walk together
RADII = {
    "car": 2.0,
    "truck": 2.5,
    "bus": 3.0,
    "trailer": 2.5,
    "construction_vehicle": 2.5,
    "pedestrian": 0.5,
    "motorcycle": 0.8,
    "bicycle": 0.7,
    "traffic_cone": 0.4,
    "barrier": 0.8,
}
#: m, of all other classes
OTHER_RADIUS = 1.0
#: intersection over union seen from above beyond which two boxes of a class are one object
OVERLAP = 0.2


def without_duplicates(boxes: Boxes3D, rule: str) -> Boxes3D:
    """Return the boxes without those that repeat a better one of the same class, in the same order.

    boxes: in any frame whose z axis is about vertical
    rule: of NMS: "distance" (RADII), "rotated_iou" (OVERLAP), or "none"

    Raises ValueError for another rule.
    """
    if rule not in NMS:
        raise ValueError(f"{rule!r} is none of {', '.join(NMS)}")
    if rule == "none" or len(boxes) < 2:
        return boxes
    kept = []
    for label in np.unique(boxes.labels):
        rows = np.flatnonzero(boxes.labels == label)
        kept.append(rows[_kept(boxes.select(rows), rule, boxes.class_names[label])])
    return boxes.select(np.sort(np.concatenate(kept)))


def _kept(boxes: Boxes3D, rule: str, name: str) -> np.ndarray:
    """Return the indices of the boxes of one class that stay."""
    scores = torch.from_numpy(np.asarray(boxes.scores, np.float64))
    if rule == "distance":
        radius = RADII.get(name, OTHER_RADIUS)
        return circle_nms(torch.from_numpy(boxes.centers[:, :2]), scores, radius**2, len(boxes)).numpy()
    planar = np.concatenate([boxes.centers[:, :2], boxes.sizes[:, :2], boxes.yaws[:, None]], axis=1)
    return rotated_nms(torch.from_numpy(planar), scores, OVERLAP, len(boxes)).numpy()
