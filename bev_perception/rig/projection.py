"""Between pixels and rays of a real lens: the picture as it is, with its distortion, also beyond 90 degrees."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from bev_perception.geometry import invert_transform
from bev_perception.types import Calibration

#: steps of Newton's method for the angle of an equidistant lens
_STEPS = 12
#: when OpenCV's iteration for polynomial lenses ends
_UNTIL = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-8)
#: pixels between two points of a picture's border
_BORDER_STEP = 16


def rays_of(calibration: Calibration, pixels: np.ndarray) -> np.ndarray:
    """Return the unit rays [n, 3] in the camera's frame of pixels [n, 2] of its distorted picture."""
    with np.errstate(all="ignore"):  # coefficients that no lens has give NaN, which is no ray
        return _rays_of(calibration, np.asarray(pixels, np.float64).reshape(-1, 2))


def _rays_of(calibration: Calibration, pixels: np.ndarray) -> np.ndarray:
    k = calibration.intrinsics
    if calibration.distortion_model == "equidistant" and calibration.distortion:
        x, y = (pixels[:, 0] - k[0, 2]) / k[0, 0], (pixels[:, 1] - k[1, 2]) / k[1, 1]
        distorted = np.hypot(x, y)
        theta = _equidistant_angle(distorted, calibration.distortion)
        scale = np.sin(theta) / np.maximum(distorted, 1e-12)
        rays = np.stack([x * scale, y * scale, np.cos(theta)], 1)
        rays[distorted < 1e-9] = 0.0, 0.0, 1.0
        return rays
    d = np.array(calibration.distortion or (0.0,) * 5)
    flat = pixels
    if len(pixels):
        flat = cv2.undistortPointsIter(pixels[:, None], k, d, np.eye(3), np.eye(3), _UNTIL).reshape(-1, 2)
    rays = np.c_[flat, np.ones(len(flat))]
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _equidistant_angle(distorted: np.ndarray, d: tuple[float, ...]) -> np.ndarray:
    """Return the angles (rad) off the optical axis of normalised radii in the picture of an equidistant lens."""
    theta = np.clip(distorted, 0.0, np.pi)
    powers = np.arange(1, 5) * 2
    for _ in range(_STEPS):
        square = theta[:, None] ** powers  # [n, 4]
        value = theta * (1 + square @ d) - distorted
        slope = 1 + (square * (powers + 1)) @ d
        theta = np.clip(theta - value / np.where(np.abs(slope) < 1e-6, 1.0, slope), 0.0, np.pi)
    return theta


def project_rays(calibration: Calibration, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels [n, 2] of points in the camera's distorted picture, and whether it shows them [n].

    points: [n, 3] in the camera's frame; only their directions count
    """
    points = np.asarray(points, np.float64).reshape(-1, 3)
    off_axis = np.hypot(points[:, 0], points[:, 1])
    theta = np.arctan2(off_axis, points[:, 2])
    seen = theta < _widest_angle(calibration)
    pixels = np.full((len(points), 2), np.nan)
    width, height = calibration.width, calibration.height
    with np.errstate(all="ignore"):
        if seen.any():
            pixels[seen] = _distort(calibration, points[seen], theta[seen], off_axis[seen])
        seen &= (pixels > -0.5).all(1) & (pixels[:, 0] < width - 0.5) & (pixels[:, 1] < height - 0.5)
    return pixels, seen


def _distort(calibration: Calibration, points: np.ndarray, theta: np.ndarray, off_axis: np.ndarray) -> np.ndarray:
    k, d = calibration.intrinsics, calibration.distortion
    if d and calibration.distortion_model == "equidistant":
        radius = theta * (1 + (theta[:, None] ** (np.arange(1, 5) * 2)) @ d)
        scaled = points[:, :2] * (radius / np.maximum(off_axis, 1e-12))[:, None]
        return scaled * (k[0, 0], k[1, 1]) + (k[0, 2], k[1, 2])
    if not d:
        return points[:, :2] / points[:, 2:] * (k[0, 0], k[1, 1]) + (k[0, 2], k[1, 2])
    return cv2.projectPoints(points[:, None], np.zeros(3), np.zeros(3), k, np.array(d))[0].reshape(-1, 2)


def _widest_angle(calibration: Calibration) -> float:
    """Return the angle off the axis (rad) that the picture's border reaches; a polynomial says nothing beyond it."""
    k = tuple(calibration.intrinsics.ravel().tolist())
    return _widest(k, calibration.width, calibration.height, calibration.distortion_model, calibration.distortion)


@functools.lru_cache(64)
def _widest(k: tuple[float, ...], width: int, height: int, model: str, distortion: tuple[float, ...]) -> float:
    calibration = Calibration(np.array(k).reshape(3, 3), width, height, model, distortion)
    rays = rays_of(calibration, border(calibration))
    angles = np.arctan2(np.hypot(rays[:, 0], rays[:, 1]), rays[:, 2])
    widest = float(angles[np.isfinite(angles)].max(initial=0.0))
    limit = np.pi if model == "equidistant" and distortion else np.radians(89.0)
    return min(widest + 1e-3, limit)


def border(calibration: Calibration) -> np.ndarray:
    """Return pixels [n, 2] along the border of a camera's picture, clockwise from the top left."""
    x = np.linspace(0, calibration.width - 1, max(2, calibration.width // _BORDER_STEP))
    y = np.linspace(0, calibration.height - 1, max(2, calibration.height // _BORDER_STEP))
    right, bottom = np.full(len(y), calibration.width - 1), np.full(len(x), calibration.height - 1)
    sides = ((x, 0 * x), (right, y), (x[::-1], bottom), (0 * y, y[::-1]))
    return np.concatenate([np.stack(side, 1) for side in sides])


def see(calibration: Calibration, sensor2ego: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels [n, 2] of points [n, 3] in base_link, and whether the camera sees them [n]."""
    ego2sensor = invert_transform(sensor2ego)
    return project_rays(calibration, points @ ego2sensor[:3, :3].T + ego2sensor[:3, 3])
