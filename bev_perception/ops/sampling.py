"""Sample image features at 3D points from several frames, cameras and pyramid levels; one camera per point and frame.

Follows Liu et al., ICCV 2023, section 3.3. A point is sampled from the first camera that sees it. If no camera does, it
is sampled from camera 0 at the pixel that it projects to, where the zero padding outside of the image usually gives
zeros; within a cell of the border a part of the features remains.

`sample_features` gathers rows of the channels-last maps in place, so the features of past frames are never stacked or
copied; `sample_features_reference` does the same with grid_sample, as a reference for the tests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bev_perception.ops.taps import bilinear_taps, weighted_rows

#: m; a point nearer to the camera plane than this, or behind it, is not visible
MIN_DEPTH = 1e-5

#: T frames x L levels of maps [B, N, h, w, C], contiguous
LevelsByFrame = Sequence[Sequence[Tensor]]


def project_points(
    points: Tensor, reference2image: Tensor, image_size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Project points into every camera of every frame.

    points: [B, T, K, 3], m
    reference2image: [B, T, N, 4, 4], to depth-scaled pixels
    image_size: (height, width) of the images, pixels

    Returns uv [B, T, N, 2, K] in image widths and heights (unbounded where not visible), depth [B, T, N, K], m, at
    least MIN_DEPTH, and visible [B, T, N, K] bool.
    """
    batch, frames, cameras = reference2image.shape[:3]
    height, width = image_size
    rows = torch.stack([reference2image[..., 0, :] / width, reference2image[..., 1, :] / height], dim=-2)
    rows = torch.cat([rows, reference2image[..., 2:3, :]], dim=-2).reshape(batch * frames, cameras * 3, 4)
    # one matrix product per frame for all its cameras: [B*T, N*3, 3] @ [B*T, 3, K]
    scaled = torch.baddbmm(rows[..., 3:], rows[..., :3], points.flatten(0, 1).transpose(1, 2))
    scaled = scaled.view(batch, frames, cameras, 3, -1)
    depth = scaled[..., 2, :].clamp(min=MIN_DEPTH)  # [B, T, N, K]
    uv = scaled[..., :2, :] / depth[..., None, :]
    u, v = uv.unbind(dim=-2)
    visible = (depth > MIN_DEPTH) & (u > 0) & (u < 1) & (v > 0) & (v < 1)
    return uv, depth, visible


def sample_features(
    levels_by_frame: LevelsByFrame,
    points: Tensor,
    reference2image: Tensor,
    level_weights: Tensor,
    image_size: tuple[int, int],
) -> Tensor:
    """Sample each group's channels at its points in every frame, and return the weighted sum over the levels.

    levels_by_frame: T x L maps [B, N, h, w, C], contiguous; group g has the channels g*C/G to (g+1)*C/G
    points: [B, T, Q, G, P, 3], m
    reference2image: [B, T, N, 4, 4], to depth-scaled pixels
    level_weights: [B, T, Q, G, P, L]
    image_size: (height, width) of the images that the matrices project into, pixels

    Returns [B, Q, G, T*P, C/G].
    """
    batch, frames, queries, groups, per_group, _ = points.shape
    uv, camera = _first_camera(points, reference2image, image_size)
    u, v, camera = (x.view(batch, frames, queries, groups, per_group) for x in (*uv.unbind(dim=2), camera))
    sample = torch.arange(batch, device=points.device).view(batch, 1, 1, 1, 1)
    group = torch.arange(groups, device=points.device).view(groups, 1, 1)
    image = sample * reference2image.shape[2] + camera  # [B, T, Q, G, P]

    sampled: list[Tensor] = []  # per frame: [B*Q*G*P, C/G]
    for index, maps in enumerate(zip(*levels_by_frame, strict=True)):  # T maps of one level
        height, width, channels = maps[0].shape[2:]
        cells, weights = bilinear_taps(
            v * (height - 1), u * (width - 1), height, width, level_weights[..., index]
        )  # [B, T, Q, G, P, 4]
        rows = ((image[..., None] * (height * width) + cells) * groups + group).transpose(0, 1)  # [T, B, Q, G, P, 4]
        weights = weights.transpose(0, 1)
        for frame, level in enumerate(maps):
            table = level.view(-1, channels // groups)
            gathered = weighted_rows(table, rows[frame].reshape(-1, 4), weights[frame].reshape(-1, 4))
            if index == 0:
                sampled.append(gathered)
            else:
                sampled[frame] += gathered
    stacked = torch.stack([s.view(batch, queries, groups, per_group, -1) for s in sampled], dim=3)
    return stacked.flatten(3, 4)


def _first_camera(points: Tensor, reference2image: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return uv [B, T, 2, K] in the first camera that sees a point (camera 0 if none does), and its index [B, T, K]."""
    uv, _, visible = project_points(points.flatten(2, 4), reference2image, image_size)
    cameras = visible.shape[2]
    countdown = torch.arange(cameras, 0, -1, dtype=torch.int32, device=points.device)[:, None]  # [N, 1]: N, ..., 1
    best = (visible * countdown).amax(dim=2)  # N for camera 0, 1 for the last, 0 for none; argmax is many times slower
    camera = ((cameras - best) % cameras).long()
    chosen = camera[:, :, None, None].expand(-1, -1, 1, 2, -1)
    return uv.gather(2, chosen).squeeze(2), camera


def sample_features_reference(
    levels_by_frame: LevelsByFrame,
    points: Tensor,
    reference2image: Tensor,
    level_weights: Tensor,
    image_size: tuple[int, int],
) -> Tensor:
    """Do the same as `sample_features`, camera by camera with grid_sample: slow, but simple."""
    batch, _, queries, groups, per_group, _ = points.shape
    cameras = reference2image.shape[2]
    uv, _, visible = project_points(points.flatten(2, 4), reference2image, image_size)
    frames = []
    for t, levels in enumerate(levels_by_frame):
        total = torch.zeros((), dtype=points.dtype, device=points.device)
        unseen = torch.ones_like(visible[:, t, 0])  # [B, K]: no earlier camera has seen the point
        nobody = ~visible[:, t].any(dim=1)
        for n in range(cameras):
            mine = (unseen & visible[:, t, n]) | (nobody if n == 0 else torch.zeros_like(nobody))
            unseen = unseen & ~visible[:, t, n]
            mine_grouped = mine.view(batch, queries, groups, per_group, 1)
            grid = 2 * uv[:, t, n].transpose(1, 2) - 1  # [B, K, 2]
            grid = grid.view(batch, queries, groups, per_group, 2)
            for index, level in enumerate(levels):
                values = _grid_sample_groups(level[:, n], grid)  # [B, Q, G, P, C/G]
                weighted = values * level_weights[:, t, ..., index, None]
                total = total + torch.where(mine_grouped, weighted, torch.zeros_like(weighted))
        frames.append(total)
    return torch.stack(frames, dim=3).flatten(3, 4)


def _grid_sample_groups(level: Tensor, grid: Tensor) -> Tensor:
    """Sample each group's channels of a level: [B, Q, G, P, C/G].

    level: [B, h, w, C]
    grid: [B, Q, G, P, 2], -1..1
    """
    groups = grid.shape[2]
    per_group = level.permute(0, 3, 1, 2).chunk(groups, dim=1)
    values = [
        F.grid_sample(maps, grid[:, :, g], mode="bilinear", padding_mode="zeros", align_corners=True)
        for g, maps in enumerate(per_group)
    ]  # G of [B, C/G, Q, P]
    return torch.stack(values, dim=3).permute(0, 2, 3, 4, 1)
