"""Places and polygons as the compiled kernels handle them: poses, cameras, projection, rows of pixels."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from bev_perception.synth.compiled import hot

#: m, the clipping plane before a camera
NEAR = 0.15
#: m beyond which objects are not drawn
FAR = 220.0


class Camera(NamedTuple):
    """A camera in the world.  rotation: [3, 3] world to camera.  position: [3].  focal, cx, cy: pixels."""

    rotation: np.ndarray
    position: np.ndarray
    fx: float
    fy: float
    cx: float
    cy: float


class Poses(NamedTuple):
    """Where the parts of Solids are: rotations [P, 3, 3] and translations [P, 3], object to world."""

    rotations: np.ndarray
    translations: np.ndarray


@hot
def outside_view(camera: Camera, x: float, y: float, z: float, radius: float, width: int, height: int) -> bool:
    """Whether a ball, its middle in the camera frame, is out of the picture for certain."""
    if z < -radius or z > FAR + radius:
        return True
    tx = max(camera.cx, width - camera.cx) / camera.fx
    ty = max(camera.cy, height - camera.cy) / camera.fy
    return abs(x) - tx * z > radius * math.sqrt(1 + tx * tx) or abs(y) - ty * z > radius * math.sqrt(1 + ty * ty)


@hot
def project_polygon(camera: Camera, polygon: np.ndarray, count: int, pixels: np.ndarray) -> int:
    """Clip a polygon [count, 3] of the camera frame at the near plane; write its corners' pixels, return their number.

    Sutherland and Hodgman, CACM 1974, for one plane.
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
    """Return the first pixel and the one after the last of a convex polygon in row y."""
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
    """Return the first row of a polygon and the one after the last."""
    low, high = 1e9, -1e9
    for i in range(count):
        low, high = min(low, pixels[i, 1]), max(high, pixels[i, 1])
    return int(max(0.0, math.ceil(low))), int(min(float(height), math.ceil(high)))


@hot
def turned(m: np.ndarray, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Return a [3, 3] matrix times a vector; for so few numbers quicker than the general product."""
    return (
        m[0, 0] * x + m[0, 1] * y + m[0, 2] * z,
        m[1, 0] * x + m[1, 1] * y + m[1, 2] * z,
        m[2, 0] * x + m[2, 1] * y + m[2, 2] * z,
    )


@hot
def turned_back(m: np.ndarray, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Return the transpose of a [3, 3] matrix times a vector."""
    return (
        m[0, 0] * x + m[1, 0] * y + m[2, 0] * z,
        m[0, 1] * x + m[1, 1] * y + m[2, 1] * z,
        m[0, 2] * x + m[1, 2] * y + m[2, 2] * z,
    )
