"""Ground truth of Sparse4D: boxes that know which object they are, and depths of lidar points in the images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bev_perception.supervision.samples import Change


@dataclass(frozen=True)
class InstanceTruth:
    """Ground truth of one key frame with N cameras.

    boxes: [n, 9] float32 in the reference frame: centre x, y, z, length, width, height (m), yaw (rad), vx, vy (m/s; 0
        where unknown).
    labels: [n] int64, classes.
    ids: [n] int64, not negative; an object has the same id in every key frame.
    depths: for each supervised pyramid level [N, h, w] float32 m, depth of the nearest lidar point in a cell, -1 where
        there is none; empty without supervision of depth.
    focals: [N] float32, focal length along the rows of the images, times the ratio of the resize, pixels.
    """

    boxes: Tensor
    labels: Tensor
    ids: Tensor
    depths: tuple[Tensor, ...]
    focals: Tensor

    def each(self, change: Change) -> InstanceTruth:
        """Return the same with every tensor changed."""
        return InstanceTruth(
            change(self.boxes),
            change(self.labels),
            change(self.ids),
            tuple(map(change, self.depths)),
            change(self.focals),
        )
