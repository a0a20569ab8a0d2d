"""Geometry for the compiled kernels: poses, cameras, projection of polygons, rows of pixels."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bev_perception.synth.compiled import hot

#: m, distance of the near clipping plane from the camera
NEAR = 0.15
#: m beyond which objects are not drawn
FAR = 220.0


class Camera(NamedTuple):
    """A camera in the world.

    rotation: [3, 3] world to camera
    position: [3] m
    fx, fy: focal length, pixels
    cx, cy: principal point, pixels
    """

    rotation: np.ndarray
    position: np.ndarray
    fx: float
    fy: float
    cx: float
    cy: float


class Poses(NamedTuple):
    """Poses of the parts of Solids, object to world.

    rotations: [P, 3, 3]
    translations: [P, 3] m
    """

    rotations: np.ndarray
    translations: np.ndarray


@hot
def outside_view(camera: Camera, x: float, y: float, z: float, radius: float, width: int, height: int) -> bool:
    """Return whether a ball is certainly outside the image.

    x, y, z: its centre in the camera's frame, m
    radius: m
    width, height: of the image, pixels
    """
    if z < -radius or z > FAR + radius:
        return True
    tx = max(camera.cx, width - camera.cx) / camera.fx
    ty = max(camera.cy, height - camera.cy) / camera.fy
    return abs(x) - tx * z > radius * math.sqrt(1 + tx * tx) or abs(y) - ty * z > radius * math.sqrt(1 + ty * ty)


@hot
def project_polygon(camera: Camera, polygon: np.ndarray, count: int, pixels: np.ndarray) -> int:
    """Clip a polygon at the near plane and project it; return the number of its corners.

    Sutherland and Hodgman, CACM 1974, for one plane.

    polygon: [count, 3] in the camera's frame, m
    pixels: [count + 1 or more, 2], where the projected corners are written
    """
    kept = 0
    for i in range(count):
        j = (i + 1) % count
        za, zb = polygon[i, 2], polygon[j, 2]
        if za >= NEAR:
            pixels[kept, 0] = camera.fx * polygon[i, 0] / za + camera.cx
            pixels[kept, 1] = camera.fy * polygon[i, 1] / za + camera.cy
            kept += 1
        if (za >= NEAR) != (zb >= NEAR):
            t = (NEAR - za) / (zb - za)
            pixels[kept, 0] = camera.fx * (polygon[i, 0] + t * (polygon[j, 0] - polygon[i, 0])) / NEAR + camera.cx
            pixels[kept, 1] = camera.fy * (polygon[i, 1] + t * (polygon[j, 1] - polygon[i, 1])) / NEAR + camera.cy
            kept += 1
    return kept


@hot
def row_span(pixels: np.ndarray, count: int, y: int, width: int) -> tuple[int, int]:
    """Return the range of pixels that a convex polygon covers in row y: the first, and the one after the last."""
    low, high = 1e9, -1e9
    for i in range(count):
        j = (i + 1) % count
        ya, yb = pixels[i, 1], pixels[j, 1]
        if (ya <= y) != (yb <= y):
            x = pixels[i, 0] + (y - ya) * (pixels[j, 0] - pixels[i, 0]) / (yb - ya)
            low, high = min(low, x), max(high, x)
    if high < low:
        return 0, 0
    return int(max(0.0, math.ceil(low))), int(min(float(width), math.ceil(high)))


@hot
def row_range(pixels: np.ndarray, count: int, height: int) -> tuple[int, int]:
    """Return the range of rows that a polygon covers: the first, and the one after the last."""
    low, high = 1e9, -1e9
    for i in range(count):
        low, high = min(low, pixels[i, 1]), max(high, pixels[i, 1])
    return int(max(0.0, math.ceil(low))), int(min(float(height), math.ceil(high)))


@hot
def turned(m: np.ndarray, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Return the product of a [3, 3] matrix and a vector; written out, it is faster than the general product."""
    return (
        m[0, 0] * x + m[0, 1] * y + m[0, 2] * z,
        m[1, 0] * x + m[1, 1] * y + m[1, 2] * z,
        m[2, 0] * x + m[2, 1] * y + m[2, 2] * z,
    )


@hot
def turned_back(m: np.ndarray, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Return the product of the transpose of a [3, 3] matrix and a vector."""
    return (
        m[0, 0] * x + m[1, 0] * y + m[2, 0] * z,
        m[0, 1] * x + m[1, 1] * y + m[2, 1] * z,
        m[0, 2] * x + m[1, 2] * y + m[2, 2] * z,
    )
