"""Sum up image features at points of instances: over cameras, pyramid levels and points, with weights for each group.

Follows Lin et al. (arXiv 2211.10581, 2022, section 3.2, and arXiv 2305.14018, 2023, section 3.2).

`aggregate_features` gathers only where a camera sees a point; `aggregate_features_reference` does the same with
grid_sample for all cameras, as a reference for the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bev_perception.ops.taps import bilinear_taps, weighted_rows


def aggregate_features(
    levels: Sequence[Tensor], uv: Tensor, weights: Tensor, gate: bool, per_point: bool = False
) -> Tensor:
    """Return the weighted sum of features, [B, N, C], or [B, N, P, C] where the points are not summed up.

    levels: L maps [B, V, h, w, C], contiguous; group g has the channels g*C/G to (g+1)*C/G
    uv: [B, N, P, V, 2], positions of N instances' P points in image widths and heights; unbounded
    weights: [B, N, P, V, L, G]
    gate: whether only points strictly inside of an image count; else a point outside still counts as far as the
        interpolation between a map's border and zeros around it reaches, which is half a cell
    per_point: whether the points are not summed up

    Features are interpolated with zeros around the maps, whose cells' middles are at (i + 0.5) / size.
    """
    visible = _visible(levels, uv, gate)  # [B, N, P, V]
    sample, instance, point, camera = visible.nonzero(as_tuple=True)  # each [K]
    (count, points, cameras), (groups, channels) = uv.shape[1:4], (weights.shape[-1], levels[0].shape[-1])
    u, v = uv[visible][:, None].unbind(dim=-1)  # [K, 1]
    seen_weights = weights[visible]  # [K, L, G]
    image = (sample * cameras + camera)[:, None, None]
    group = torch.arange(groups, device=uv.device)[:, None]
    gathered = levels[0].new_zeros(len(sample) * groups, channels // groups)
    for level, scale in zip(levels, seen_weights.unbind(dim=1), strict=True):
        height, width = level.shape[2:4]
        cells, taps = bilinear_taps(v * height - 0.5, u * width - 0.5, height, width, scale)  # [K, 1, 4], [K, G, 4]
        rows = (image * (height * width) + cells) * groups + group
        gathered = gathered + weighted_rows(level.view(-1, channels // groups), rows.view(-1, 4), taps.view(-1, 4))
    place = sample * count + instance
    if per_point:
        place = place * points + point
    shape = uv.shape[:3] if per_point else uv.shape[:2]
    summed = gathered.new_zeros(shape.numel(), channels).index_add(0, place, gathered.view(-1, channels))
    return summed.view(*shape, channels)


def _visible(levels: Sequence[Tensor], uv: Tensor, gate: bool) -> Tensor:
    """Return [B, N, P, V] bool: where a point may get features from any level."""
    height, width = (min(level.shape[axis] for level in levels) for axis in (2, 3))
    margin = uv.new_zeros(2) if gate else uv.new_tensor([0.5 / width, 0.5 / height])
    return ((uv > -margin) & (uv < 1 + margin)).all(dim=-1)


def aggregate_features_reference(
    levels: Sequence[Tensor], uv: Tensor, weights: Tensor, gate: bool, per_point: bool = False
) -> Tensor:
    """Do the same as `aggregate_features` with grid_sample for every camera and level: slow, but simple."""
    groups = weights.shape[-1]
    inside = ((uv > 0) & (uv < 1)).all(dim=-1)
    total = torch.zeros((), dtype=uv.dtype, device=uv.device)
    for camera in range(uv.shape[3]):
        at = uv[:, :, :, camera]
        counted = inside[:, :, :, camera, None] if gate else torch.ones_like(at[..., :1], dtype=torch.bool)
        grid = torch.where(counted, 2 * at - 1, torch.full_like(at, -3.0))
        for index, level in enumerate(levels):
            maps = level[:, camera].permute(0, 3, 1, 2)
            values = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            by_group = values.permute(0, 2, 3, 1).unflatten(-1, (groups, -1))  # [B, N, P, G, C/G]
            total = total + (by_group * weights[:, :, :, camera, index, :, None]).flatten(-2)
    return total if per_point else total.sum(dim=2)
