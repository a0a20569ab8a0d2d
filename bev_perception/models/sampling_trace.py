"""Where the queries of a model sample the images; recorded by the families, shown by visualization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bev_perception.ops.sampling import project_points
from bev_perception.types import Boxes3D


@dataclass(frozen=True)
class SamplingTrace:
    """Where one run of a model sampled the images, and the boxes that it found.

    Shapes: S stages (decoder layers), T frames with the current one first, Q queries, K = groups * points per group.

    points: [S, T, Q, K, 3], m, in the model's reference frame
    reference2image: [T, N, 4, 4], reference frame (m) to depth-scaled pixels of the network's input images
    image_size: (height, width) of the input images, pixels
    time_differences: [T], s, how much older each frame is than the first
    boxes: one per query, of its best class after the last stage, in the model's reference frame
    """

    points: Tensor
    reference2image: Tensor
    image_size: tuple[int, int]
    time_differences: np.ndarray
    boxes: Boxes3D

    def best(self, count: int) -> list[int]:
        """Return the indices of the `count` queries with the highest scores, highest first."""
        found: list[int] = np.argsort(-self.boxes.scores, kind="stable")[:count].tolist()
        return found

    def samples(self, queries: Sequence[int], frame: int) -> Samples:
        """Return where the given queries sample one frame; frame 0 is the current one."""
        points = self.points[:, frame][:, list(queries)]  # [S, n, K, 3]
        uv, _, visible = project_points(
            points.reshape(1, 1, -1, 3), self.reference2image[None, None, frame], self.image_size
        )  # [1, 1, N, 2, S*n*K], [1, 1, N, S*n*K]
        shape, cameras = points.shape[:3], len(visible[0, 0])
        height, width = self.image_size
        pixels = (uv[0, 0] * uv.new_tensor([width, height])[:, None]).permute(2, 0, 1)  # [S*n*K, N, 2]
        seen = visible[0, 0].T.cpu().numpy()  # [S*n*K, N]
        camera = np.where(seen.any(axis=1), seen.argmax(axis=1), -1)
        return Samples(
            points.cpu().numpy(),
            pixels.reshape(*shape, cameras, 2).cpu().numpy(),
            seen.reshape(*shape, cameras),
            camera.reshape(shape),
        )


@dataclass(frozen=True)
class Samples:
    """Where n queries sample one frame.

    points: [S, n, K, 3], m, in the model's reference frame
    pixels: [S, n, K, N, 2], in the network's input image of each camera; invalid where not visible
    visible: [S, n, K, N] bool, whether the camera sees the point
    camera: [S, n, K], index of the camera that the features come from, the first that sees the point; -1: no camera
        sees it
    """

    points: np.ndarray
    pixels: np.ndarray
    visible: np.ndarray
    camera: np.ndarray
