"""Rigid transforms and their interpolation, quaternions, yaw, projection, and the corners of boxes."""

from __future__ import annotations

import math

import numpy as np

from bev_perception.strict import UserError

QUATERNION_TOLERANCE = 1e-2


def rotation_from_quaternion(w: float, x: float, y: float, z: float) -> np.ndarray:
    """Return the [3, 3] rotation matrix of a quaternion, which is normalised first.

    Raises UserError for a quaternion that is not finite or whose norm is almost zero.
    """
    return transform_from_quaternion(w, x, y, z)[:3, :3]


def transform_from_quaternion(
    w: float, x: float, y: float, z: float, translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> np.ndarray:
    """Return the [4, 4] transform of a quaternion, which is normalised first, and a translation (m).

    It is made in one step, since tf may bring thousands in a second.

    Raises UserError for a quaternion that is not finite or whose norm is almost zero.
    """
    n = math.sqrt(w * w + x * x + y * y + z * z)
    if not math.isfinite(n) or n < QUATERNION_TOLERANCE:
        raise UserError(f"({w}, {x}, {y}, {z}) is no rotation: the quaternion's norm is {n}")
    w, x, y, z = w / n, x / n, y / n, z / n
    tx, ty, tz = translation
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), tx],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x), ty],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y), tz],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )


def quaternion_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """Return the quaternion (w, x, y, z) with w >= 0 of a [3, 3] rotation matrix.

    Shepperd's method: the component with the largest magnitude is computed first, so no division is by a small number.
    """
    m = rotation
    squares = np.array(
        [
            1 + m[0, 0] + m[1, 1] + m[2, 2],
            1 + m[0, 0] - m[1, 1] - m[2, 2],
            1 - m[0, 0] + m[1, 1] - m[2, 2],
            1 - m[0, 0] - m[1, 1] + m[2, 2],
        ]
    )
    k = int(np.argmax(squares))
    products = np.array(
        [
            [squares[0], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], squares[1], m[1, 0] + m[0, 1], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[1, 0] + m[0, 1], squares[2], m[2, 1] + m[1, 2]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[2, 1] + m[1, 2], squares[3]],
        ]
    )
    q = products[k] / np.linalg.norm(products[k])
    return q if q[0] >= 0 else -q


def rotation_from_yaw(yaw: float) -> np.ndarray:
    """Return the [3, 3] rotation matrix about z by `yaw` rad, counter-clockwise."""
    c, s = math.cos(yaw), math.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def yaw_from_rotation(rotation: np.ndarray) -> float:
    """Return the heading of the rotated x axis, in rad, counter-clockwise from +x."""
    return math.atan2(rotation[1, 0], rotation[0, 0])


def make_transform(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Return the [4, 4] transform p -> rotation @ p + translation."""
    transform = np.eye(4)
    transform[:3, :3] = rotation
    transform[:3, 3] = translation
    return transform


def invert_transform(transform: np.ndarray) -> np.ndarray:
    """Return the inverse of a rigid [4, 4] transform (or a stack [..., 4, 4])."""
    rotation_t = np.swapaxes(transform[..., :3, :3], -1, -2)
    inverse = np.zeros_like(transform)
    inverse[..., :3, :3] = rotation_t
    inverse[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation_t, transform[..., :3, 3])
    inverse[..., 3, 3] = 1.0
    return inverse


def transform_points(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a [4, 4] transform to points [n, 3]."""
    return points @ transform[:3, :3].T + transform[:3, 3]


def project(points2image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project points into an image; return pixels [n, 2] and depths [n] (m).

    points2image: [4, 4], to depth-scaled pixels (u*d, v*d, d)
    points: [n, 3], m

    Pixels are valid only where the depth is positive.
    """
    scaled = transform_points(points2image, points)  # [n, 3]: u*d, v*d, d
    depth = scaled[:, 2]
    return scaled[:, :2] / np.maximum(depth, 1e-5)[:, None], depth


def intrinsics_4x4(intrinsics: np.ndarray) -> np.ndarray:
    """Return a [3, 3] camera matrix extended to [4, 4]."""
    k = np.eye(4)
    k[:3, :3] = intrinsics
    return k


def box_corners(centers: np.ndarray, sizes: np.ndarray, yaws: np.ndarray) -> np.ndarray:
    """Return the corners [n, 8, 3] of boxes, m.

    centers: [n, 3], m
    sizes: [n, 3], length, width, height, m
    yaws: [n], rad, counter-clockwise from +x

    Corners 0-3 are the bottom face and 4-7 the top face, each counter-clockwise from the front left; 0, 3, 4 and 7 are
    the front.
    """
    unit = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2.0
    unit = np.concatenate([np.c_[unit, -0.5 * np.ones(4)], np.c_[unit, 0.5 * np.ones(4)]])  # [8, 3]
    local = unit[None] * np.asarray(sizes, np.float64)[:, None]  # [n, 8, 3]
    c, s = np.cos(yaws)[:, None], np.sin(yaws)[:, None]
    x = local[..., 0] * c - local[..., 1] * s
    y = local[..., 0] * s + local[..., 1] * c
    return np.stack([x, y, local[..., 2]], -1) + np.asarray(centers, np.float64)[:, None]


def interpolate_transform(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """Interpolate two rigid transforms [4, 4]: slerp of the rotation, linear interpolation of the translation.

    weight: 0 gives a, 1 gives b
    """
    qa, qb = quaternion_from_rotation(a[:3, :3]), quaternion_from_rotation(b[:3, :3])
    dot = float(qa @ qb)
    if dot < 0:  # q and -q are the same rotation: take the shorter way
        qb, dot = -qb, -dot
    angle = math.acos(min(dot, 1.0))
    if angle < 1e-6:
        q = (1 - weight) * qa + weight * qb
    else:
        q = (math.sin((1 - weight) * angle) * qa + math.sin(weight * angle) * qb) / math.sin(angle)
    translation = (1 - weight) * a[:3, 3] + weight * b[:3, 3]
    return make_transform(rotation_from_quaternion(*q), translation)


def optical_rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Return the rotation [3, 3] of a camera's optical frame (x right, y down, z ahead) to a frame with z up.

    yaw: rad to the left of its x axis
    pitch: rad above the horizon
    roll: rad clockwise about the view's axis
    """
    ahead = np.array([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)])
    level = np.array([np.sin(yaw), -np.cos(yaw), 0.0])  # to the right
    below = np.cross(ahead, level)
    right = np.cos(roll) * level + np.sin(roll) * below
    return np.stack([right, np.cos(roll) * below - np.sin(roll) * level, ahead], axis=1)


def optical_angles(rotation: np.ndarray) -> tuple[float, float, float]:
    """Return yaw, pitch and roll (rad) of an optical frame, of which optical_rotation makes its rotation [3, 3]."""
    right, ahead = rotation[:, 0], rotation[:, 2]
    yaw = float(np.arctan2(ahead[1], ahead[0]))
    level = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    roll = float(np.arctan2(right @ np.cross(ahead, level), right @ level))
    return yaw, float(np.arcsin(np.clip(ahead[2], -1.0, 1.0))), roll
