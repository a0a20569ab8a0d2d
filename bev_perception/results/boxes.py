"""Transform boxes between frames of reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bev_perception.types import Boxes3D


def to_ego(boxes: Boxes3D, reference2ego: np.ndarray) -> Boxes3D:
    """Return the boxes in another frame, with centres, yaws and velocities transformed.

    reference2ego: [4, 4], from the frame of the boxes to the new one

    If the transform tilts, boxes stay upright and their headings are projected onto the new ground plane.
    """
    rotation = reference2ego[:3, :3]
    centers = boxes.centers @ rotation.T + reference2ego[:3, 3]
    headings = np.stack([np.cos(boxes.yaws), np.sin(boxes.yaws)], axis=1) @ rotation[:2, :2].T  # [n, 2]
    velocities = boxes.velocities @ rotation[:2, :2].T
    yaws = np.arctan2(headings[:, 1], headings[:, 0])
    return replace(boxes, centers=centers, yaws=yaws, velocities=velocities)
