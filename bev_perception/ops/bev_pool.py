"""Pooling of lifted image features into the cells of a grid (Philion and Fidler, Lift Splat Shoot, ECCV 2020).

Every pixel has a feature vector and a distribution over depths; each (pixel, depth) is a point that adds
probability * vector to the cell that it lies in. The vectors of the points are never stored: `PoolPlan` sorts the
points by cell, and each cell sums its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PoolPlan:
    """The points that lie in a cell, sorted by cell; the same until a camera's matrices change.

    points: [P] int64, indices into the probabilities [B, N, D, h, w]
    pixels: [P] int64, indices into the pixels [B, N, h, w]
    starts: [K] int64, where the points of each cell that is not empty begin
    cells: [K] int64, the cells that are not empty, ascending
    count: number of cells of the whole batch
    """

    points: Tensor
    pixels: Tensor
    starts: Tensor
    cells: Tensor
    count: int


def plan_pool(index: Tensor, count: int) -> PoolPlan:
    """Sort the points by cell.

    index: [B, N, D, h, w] int64, the cell of each point, -1 for none
    count: number of cells of the whole batch
    """
    flat = index.flatten()
    kept = (flat >= 0).nonzero()[:, 0]
    cells, order = flat[kept].int().sort(stable=True)  # CPUs sort four bytes in half the time
    points = kept[order]
    batch, cameras, _, height, width = index.shape
    pixel = torch.arange(batch * cameras * height * width, device=index.device).view(batch, cameras, 1, height, width)
    pixels = pixel.expand(index.shape).flatten()[points]
    cells, sizes = torch.unique_consecutive(cells, return_counts=True)
    return PoolPlan(points, pixels, sizes.cumsum(0) - sizes, cells.long(), count)


def bev_pool(depth: Tensor, context: Tensor, plan: PoolPlan) -> Tensor:
    """Return the sums of all cells [count, C].

    depth: [B, N, D, h, w], probabilities
    context: [B, N, C, h, w], of the same type
    plan: of plan_pool for these shapes

    On every device each cell is one bag of pixels, whose sum is weighted with the probabilities; gradients flow to both
    arguments. The order of the summands is fixed, so the same input gives the same sums.
    """
    vectors = context.movedim(2, -1).flatten(0, -2)  # [B * N * h * w, C]
    weights = depth.flatten()[plan.points]
    sums = F.embedding_bag(plan.pixels, vectors, plan.starts, mode="sum", per_sample_weights=weights)
    return context.new_zeros(plan.count, context.shape[2]).index_copy(0, plan.cells, sums)


def bev_pool_reference(depth: Tensor, context: Tensor, index: Tensor, count: int) -> Tensor:
    """Return what `bev_pool` returns, point by point; index and count are those of plan_pool."""
    batch, cameras, depths, height, width = depth.shape
    vectors = context.movedim(2, -1)[:, :, None].expand(batch, cameras, depths, height, width, -1)  # [B,N,D,h,w,C]
    lifted = (depth[..., None] * vectors).flatten(0, -2)
    inside = index.flatten() >= 0
    return context.new_zeros(count, context.shape[2]).index_add(0, index.flatten()[inside], lifted[inside])
