"""Depth of lidar points in the images of cameras, as supervision of models that estimate depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: m; nearer points are left out
MIN_DEPTH = 0.1
#: value of cells without a point
NO_DEPTH = -1.0


def project_lidar(points: np.ndarray, lidar2image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return columns u and rows v (pixels) and depth (m) of points in the images of N cameras, each [N, n].

    u and v mean nothing where the depth is not positive.

    points: [n, 3], m.
    lidar2image: [N, 4, 4] to depth-scaled pixels.
    """
    scaled = lidar2image[:, :3, :3] @ points.T + lidar2image[:, :3, 3:]  # [N, 3, n]
    depth = scaled[:, 2]
    safe = np.where(depth > 0, depth, 1.0)
    return scaled[:, 0] / safe, scaled[:, 1] / safe, depth


def nearest_depths(
    columns: np.ndarray, rows: np.ndarray, depths: np.ndarray, size: tuple[int, int], empty: float
) -> np.ndarray:
    """Return a map [h, w] float32 of the depth of the nearest point in each cell; `empty` where there is none.

    columns: [n] whole cells; points outside of the map are left out.
    rows: [n] likewise.
    depths: [n], m.
    size: (h, w).
    """
    height, width = size
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    cells = rows[inside].astype(np.int64) * width + columns[inside].astype(np.int64)
    nearest = np.full(height * width, np.inf, np.float32)
    np.minimum.at(nearest, cells, depths[inside].astype(np.float32))
    return np.where(np.isinf(nearest), np.float32(empty), nearest).reshape(height, width)


def depth_pyramid(
    points: np.ndarray,
    lidar2image: np.ndarray,
    image_size: tuple[int, int],
    strides: Sequence[int],
    max_depth: float,
    clip: bool,
) -> list[np.ndarray]:
    """Return for each stride a map [N, h, w] float32 of the depth of the nearest point in each cell, else NO_DEPTH.

    points: [n, 3], m.
    lidar2image: [N, 4, 4] to depth-scaled pixels.
    image_size: (height, width), pixels.
    strides: pixels a cell, along each axis.
    max_depth: m.
    clip: whether farther points count as being at max_depth; otherwise they are left out.
    """
    height, width = image_size
    levels: list[list[np.ndarray]] = [[] for _ in strides]
    for u, v, depth in zip(*project_lidar(points, lidar2image), strict=True):
        column, row = np.rint(u), np.rint(v)
        kept = (depth >= MIN_DEPTH) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        if not clip:
            kept &= depth <= max_depth
        column, row, near = column[kept], row[kept], np.minimum(depth[kept], max_depth)
        for level, stride in zip(levels, strides, strict=True):
            size = (height // stride, width // stride)
            level.append(nearest_depths(column // stride, row // stride, near, size, NO_DEPTH))
    return [np.stack(level) for level in levels]
