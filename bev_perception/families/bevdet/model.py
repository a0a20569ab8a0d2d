"""BEVDet and its successors: images are lifted into a grid of the ego frame, where boxes or occupancy are found."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bev_perception.families.bevdet.centerpoint_head import TaskMaps


@dataclass(frozen=True)
class BEVDetOutput:
    """What the network says of the current frame.

    tasks: of a detector, the maps of each task; empty for an occupancy model
    occupancy: [B, X, Y, Z, classes] logits of an occupancy model; None for a detector
    depth: [B, N, D, h, w], each pixel's distribution over the depths
    finite: [] bool, whether everything computed is finite
    """

    tasks: tuple[TaskMaps, ...]
    occupancy: Tensor | None
    depth: Tensor
    finite: Tensor
