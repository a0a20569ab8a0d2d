"""BEVDet and its successors: images are lifted into a grid of the ego frame, where boxes or occupancy are found."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

#: the maps of one task of the detection head, each [B, n, Y, X], before sigmoid and exp: "reg" (x, y within the cell, in
#: cells), "height" (z of the middle, m), "dim" (logarithms of length, width, height in m), "rot" (sine, cosine of the
#: yaw), "vel" (m/s), "heatmap" (classes of the task)
TaskMaps = dict[str, Tensor]


@dataclass(frozen=True)
class BEVDetOutput:
    """What the network says of the current frame.

    tasks: of a detector, the maps of each task; rows are y, columns are x, ascending; empty for an occupancy model
    occupancy: [B, X, Y, Z, classes] logits of an occupancy model; None for a detector
    depth: [B, N, D, h, w], each pixel's distribution over the depths
    finite: [] bool, whether everything computed is finite
    """

    tasks: tuple[TaskMaps, ...]
    occupancy: Tensor | None
    depth: Tensor
    finite: Tensor
