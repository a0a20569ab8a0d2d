"""Training targets: heatmaps and codes of boxes (Yin et al., CVPR 2021), and bins of depths (Li et al., AAAI 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bev_perception.families.bevdet.config import CenterPointConfig, DepthConfig, GridConfig
from bev_perception.families.bevdet.recipe import BEVDetRecipe
from bev_perception.supervision.samples import BoxTruth

#: label of a cell whose depth is not known or beyond the bins
NO_DEPTH = -1


@dataclass(frozen=True)
class TaskTarget:
    """What a task's maps should be for one sample.

    heatmap: [classes, Y, X], 1 at the centres of boxes, falling off around them
    cells: [n] int64, flat indices y * X + x of the cells of the boxes' centres; boxes may share a cell
    codes: [n, 10], of the boxes, as in TaskMaps.codes
    """

    heatmap: Tensor
    cells: Tensor
    codes: Tensor


def task_targets(
    truth: BoxTruth, config: CenterPointConfig, grid: GridConfig, recipe: BEVDetRecipe
) -> tuple[TaskTarget, ...]:
    """Return the targets of each task for one sample; boxes whose centre lies outside of the grid are left out."""
    return tuple(
        _target(truth.boxes[rows], labels, classes, grid, recipe)
        for rows, labels, classes in _by_task(truth.labels, config, recipe.max_objects)
    )


def _by_task(labels: Tensor, config: CenterPointConfig, most: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield for each task the rows of its boxes, class by class, their labels in it, and its number of classes."""
    first = 0
    for task in config.tasks:
        own = labels - first
        ordered = own.argsort(stable=True)
        rows = ordered[(own[ordered] >= 0) & (own[ordered] < len(task))][:most]
        yield rows, own[rows], len(task)
        first += len(task)


def _target(boxes: Tensor, labels: Tensor, classes: int, grid: GridConfig, recipe: BEVDetRecipe) -> TaskTarget:
    """Return the target of one task from its boxes [n, 9] and their labels [n]."""
    columns, rows, _ = grid.size
    places = (boxes[:, :2] - boxes.new_tensor(grid.range[:2])) / boxes.new_tensor(grid.cell[:2])  # [n, 2] in cells
    corners = places.long()  # towards zero
    inside = ((corners >= 0) & (corners < corners.new_tensor([columns, rows]))).all(dim=1)
    boxes, labels, places, corners = (x[inside] for x in (boxes, labels, places, corners))
    radii = gaussian_radius(boxes[:, 3] / grid.cell[0], boxes[:, 4] / grid.cell[1], recipe.gaussian_overlap)
    radii = radii.long().clamp(min=recipe.gaussian_radius)
    yaws = boxes[:, 6:7]
    codes = [places - corners, boxes[:, 2:3], boxes[:, 3:6].log(), yaws.sin(), yaws.cos(), boxes[:, 7:9]]
    return TaskTarget(
        draw_heatmap(corners, radii, labels, (classes, rows, columns)).to(boxes.dtype),
        corners[:, 1] * columns + corners[:, 0],
        torch.cat(codes, dim=1),
    )


def gaussian_radius(lengths: Tensor, widths: Tensor, overlap: float) -> Tensor:
    """Return the radii [n], in cells, within which a corner may move for a box to keep this overlap with the true one.

    The formulas are those of the published code of CornerNet (Law and Deng, ECCV 2018), which take the roots of three
    quadratic equations without their leading coefficients; trained weights depend on them.

    lengths, widths: [n], cells
    """
    total, area = lengths + widths, lengths * widths
    shifted = (total + (total**2 - 4 * area * (1 - overlap) / (1 + overlap)).sqrt()) / 2
    inside = (2 * total + (4 * total**2 - 16 * (1 - overlap) * area).sqrt()) / 2
    outside = (-2 * overlap * total + (4 * overlap**2 * total**2 + 16 * overlap * (1 - overlap) * area).sqrt()) / 2
    return torch.minimum(torch.minimum(shifted, inside), outside)


def draw_heatmap(corners: Tensor, radii: Tensor, labels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return a heatmap [classes, Y, X] float64 with a Gaussian blob for every object; where blobs meet, the larger one.

    corners: [n, 2] int64, column and row of the objects' cells
    radii: [n] int64, cells; a blob is a square of 2 radius + 1 cells
    labels: [n] int64
    shape: of the heatmap
    """
    _, rows, columns = shape
    heatmap = torch.zeros(math.prod(shape), dtype=torch.float64, device=corners.device)
    if not len(corners):
        return heatmap.view(shape)
    most = int(radii.max())
    steps = torch.arange(-most, most + 1, device=corners.device)
    y, x = (corners[:, axis, None] + steps for axis in (1, 0))  # [n, 2 most + 1]
    squared = steps[:, None] ** 2 + steps**2  # [2 most + 1, 2 most + 1]
    sigma = (2 * radii + 1).double()[:, None, None] / 6
    values = torch.exp(-squared / (2 * sigma**2))
    near = steps.abs() <= radii[:, None]  # [n, 2 most + 1]
    drawn_y, drawn_x = near & (y >= 0) & (y < rows), near & (x >= 0) & (x < columns)
    drawn = drawn_y[:, :, None] & drawn_x[:, None, :]
    places = (labels[:, None, None] * rows + y[:, :, None]) * columns + x[:, None, :]
    return heatmap.scatter_reduce(0, places[drawn], values[drawn], "amax").view(shape)


def depth_labels(depths: Tensor, stride: int, config: DepthConfig) -> Tensor:
    """Return the bins [..., H / stride, W / stride] int64 of the nearest known depths, NO_DEPTH where there is none.

    depths: [..., H, W], m; 0 where not known
    stride: pixels along an edge of a cell
    config: of the bins
    """
    patches = depths.unflatten(-1, (-1, stride)).unflatten(-3, (-1, stride))  # [..., h, stride, w, stride]
    nearest = torch.where(patches > 0, patches, math.inf).amin(dim=(-3, -1))
    if config.logarithmic:
        per_bin = math.log((config.high - 1) / config.low) / (config.count - 1)
        bins = (nearest / config.low).log() / per_bin
    else:
        bins = (nearest - config.low) / config.step
    known = (bins >= 0) & (bins < config.count)
    return torch.where(known, bins, NO_DEPTH).long()
