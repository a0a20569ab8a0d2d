"""Decode the maps of the CenterPoint head into boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bev_perception.families.bevdet.centerpoint_head import TaskMaps
from bev_perception.families.bevdet.config import CenterPointConfig, GridConfig
from bev_perception.models.protocol import NotFiniteError
from bev_perception.ops.rotated_nms import circle_nms, rotated_nms
from bev_perception.types import Boxes3D


def decode_boxes(
    maps: Sequence[TaskMaps], finite: Tensor, config: CenterPointConfig, grid: GridConfig, class_names: tuple[str, ...]
) -> Boxes3D:
    """Return the boxes of all tasks, best first; the batch is 1.

    maps: of each task
    finite: [] bool, whether everything that they were computed from is finite
    config: of the head
    grid: of the maps
    class_names: of the variant

    Raises NotFiniteError for outputs, or features, that are NaN or infinite.
    """
    first = 0
    found: list[Candidates] = []
    for task, task_maps in enumerate(maps):
        candidates = find_candidates(task_maps, finite, config, grid)
        kept = candidates.select(suppress(candidates, task, config))
        found.append(Candidates(kept.codes, kept.scores, kept.labels + first))
        first += len(config.tasks[task])
    scores = np.concatenate([task.scores for task in found])
    codes = np.concatenate([task.codes for task in found])
    labels = np.concatenate([task.labels for task in found])
    boxes = Boxes3D(codes[:, :3], codes[:, 3:6], codes[:, 6], codes[:, 7:9], scores, labels, class_names)
    return boxes.select(np.argsort(-scores, kind="stable"))


@dataclass(frozen=True)
class Candidates:
    """Boxes of one task in descending order of score.

    codes: [n, 9] x, y, z of the middle, length, width, height (m), yaw (rad), vx, vy (m/s), in the reference frame
    scores: [n]
    labels: [n] int64, indices into the task's classes
    """

    codes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def select(self, keep: np.ndarray) -> Candidates:
        """Return the candidates that `keep`, a mask or indices, selects."""
        return Candidates(self.codes[keep], self.scores[keep], self.labels[keep])


def find_candidates(maps: TaskMaps, finite: Tensor, config: CenterPointConfig, grid: GridConfig) -> Candidates:
    """Return the best boxes of a task that score high enough and lie in range; arguments as in decode_boxes.

    The best cells of each class are selected first, then the best of these; every cell may be chosen, whether its
    neighbours score higher or not.
    """
    columns = maps.heatmap.shape[-1]
    by_class, cells = maps.heatmap[0].sigmoid().flatten(1).topk(_most(config, maps.heatmap[0, 0].numel()))  # [C, K]
    scores, places = by_class.flatten().topk(_most(config, by_class.numel()))  # [K]
    labels = places // by_class.shape[1]
    cells = cells.flatten()[places]
    taken = maps.codes[0].flatten(1)[:, cells].T  # [K, 10]
    # one transfer from the device: [K, 14]; cells and labels are small enough to be exact as float32
    extra = (x[:, None].to(taken.dtype) for x in (finite.expand(len(scores)), scores, labels, cells))
    values = torch.cat([*extra, taken], dim=1).double().cpu().numpy()
    if not values[:, 0].all() or not np.isfinite(values).all():
        raise NotFiniteError("the model's features or outputs hold NaN or infinity; look at the weights and the images")
    found = Candidates(
        _to_codes(values[:, 4:], values[:, 3].astype(np.int64), columns, grid),
        values[:, 1],
        values[:, 2].astype(np.int64),
    )
    low, high = np.array(config.center_range[:3]), np.array(config.center_range[3:])
    inside = (found.codes[:, :3] >= low).all(axis=1) & (found.codes[:, :3] <= high).all(axis=1)
    found = found.select((found.scores > config.score_threshold) & inside)
    if not np.isfinite(found.codes).all():
        raise NotFiniteError("the model says of boxes that they are infinitely large; look at the weights")
    return found


def _most(config: CenterPointConfig, available: int) -> int:
    return min(config.max_num, available)


def _to_codes(values: np.ndarray, cells: np.ndarray, columns: int, grid: GridConfig) -> np.ndarray:
    """Return codes as in Candidates from what the head says, [n, 10] in the order of TaskMaps, at flat cells [n]."""
    corners = np.stack([cells % columns, cells // columns], axis=1)
    with np.errstate(over="ignore"):  # find_candidates checks the result
        sizes = np.exp(values[:, 3:6])
    return np.concatenate(
        [
            (corners + values[:, :2]) * grid.cell[:2] + grid.range[:2],
            values[:, 2:3],
            sizes,
            np.arctan2(values[:, 6], values[:, 7])[:, None],
            values[:, 8:10],
        ],
        axis=1,
    )


def suppress(candidates: Candidates, task: int, config: CenterPointConfig) -> np.ndarray:
    """Return the indices of the candidates that remain, best first; boxes of all classes of the task compete.

    Before rotated boxes are compared, their lengths and widths are scaled by the factor of their class
    (scale-NMS, Huang et al., BEVDet, 2021), so that small boxes that miss each other can still compete.
    """
    scores = torch.from_numpy(candidates.scores)
    if config.nms[task] == "circle":
        centers = torch.from_numpy(candidates.codes[:, :2])
        return circle_nms(centers, scores, config.nms_radius[task], config.post_max).numpy()
    planar = candidates.codes[:, [0, 1, 3, 4, 6]]  # x, y, length, width, yaw
    planar[:, 2:4] *= np.array(config.nms_factor[task])[candidates.labels][:, None]
    return rotated_nms(torch.from_numpy(planar), scores, config.nms_threshold[task], config.post_max).numpy()
