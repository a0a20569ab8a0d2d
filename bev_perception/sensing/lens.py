"""Maps that undistort an image: for each pixel of an ideal lens, its position in the image of the real lens."""

from __future__ import annotations

import cv2
import numpy as np

#: value of a map for a pixel that the real image does not show; far enough outside that every interpolation gives 0
OUTSIDE = -16.0
RADIAL_SAMPLES = 2048


def undistortion_map(
    intrinsics: np.ndarray,
    model: str,
    distortion: tuple[float, ...],
    source_hw: tuple[int, int],
    source2output: np.ndarray,
    output_wh: tuple[int, int],
    camera: np.ndarray | None = None,
    turn: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return maps x, y [h, w] float32 for cv2.remap: each output pixel's position in the distorted source image.

    intrinsics: [3, 3], of the source image, distorted or undistorted
    model: distortion model, see types.Calibration
    distortion: coefficients, see types.Calibration
    source_hw: (height, width) of the source image, pixels
    source2output: [3, 3], pixel centres of the undistorted source image (integers) to those of the output
    output_wh: (width, height) of the output, pixels
    camera: [3, 3], intrinsics of another, ideal lens that the undistorted source image is of; None: the real one's
    turn: [3, 3], optical frame of the source to that of the undistorted source image; None: they are one

    A pixel that the source does not show gets OUTSIDE. It lies beyond the source's border, or so far off the optical
    axis that the distortion polynomial is no longer monotonic and would show a part of the scene twice.
    """
    d = np.array(distortion or (0.0,) * 4, np.float64)
    output_camera = source2output @ (intrinsics if camera is None else camera)
    turn = np.eye(3) if turn is None else turn
    with np.errstate(all="ignore"):  # coefficients that no lens has give NaN, which shows nothing
        # both functions convert integer output pixels to rays with the inverse of output_camera
        if model == "equidistant":
            x, y = cv2.fisheye.initUndistortRectifyMap(intrinsics, d, turn, output_camera, output_wh, cv2.CV_32FC1)
        else:
            x, y = cv2.initUndistortRectifyMap(intrinsics, d, turn, output_camera, output_wh, cv2.CV_32FC1)

        height, width = source_hw
        seen = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
        radius = _ray_radius(output_camera, output_wh, turn)
        seen &= radius < _turning_radius(model, d, float(radius[np.isfinite(radius)].max(initial=0.0)))
    # the outer half of a border pixel shows that pixel, not a blend with the black around the image
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    x[~seen] = y[~seen] = OUTSIDE
    return x, y


def _ray_radius(camera: np.ndarray, size_wh: tuple[int, int], turn: np.ndarray) -> np.ndarray:
    """Return the tangent [h, w] of the angle between each pixel's ray and the source's axis; infinity behind it."""
    u, v = np.meshgrid(np.arange(size_wh[0]), np.arange(size_wh[1]))
    rays = np.stack([u, v, np.ones_like(u)], -1) @ (turn.T @ np.linalg.inv(camera)).T  # [h, w, 3]
    ahead = rays[..., 2] > 1e-6
    return np.where(ahead, np.hypot(rays[..., 0], rays[..., 1]) / np.where(ahead, rays[..., 2], 1.0), np.inf)


def _turning_radius(model: str, d: np.ndarray, limit: float) -> float:
    """Return the ray radius at which the radius in the image stops growing; infinity if it grows up to `limit`."""
    r = np.linspace(0.0, limit * 1.001, RADIAL_SAMPLES)
    if model == "equidistant":
        theta = np.arctan(r)
        image_radius = theta * np.polyval([d[3], d[2], d[1], d[0], 1.0], theta**2)
    else:
        k = np.zeros(6)  # k1, k2, k3 of the numerator and k4, k5, k6 of the denominator; d[2:4] is tangential
        k[:2] = d[:2]
        k[2 : 2 + len(d[4:8])] = d[4:8]  # beyond are thin prism and tilt, which turn nothing back
        numerator = np.polyval([k[2], k[1], k[0], 1.0], r**2)
        image_radius = r * numerator / np.polyval([k[5], k[4], k[3], 1.0], r**2)
    turned = np.flatnonzero(np.diff(image_radius) <= 0)
    return float(r[turned[0]]) if turned.size else float("inf")
