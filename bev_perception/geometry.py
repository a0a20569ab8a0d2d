"""Rigid transforms, quaternions, projection, boxes' yaw, and a pose history with interpolation."""

from __future__ import annotations

import bisect
import math
from collections import deque

import numpy as np

QUATERNION_TOLERANCE = 1e-2


def rotation_from_quaternion(w: float, x: float, y: float, z: float) -> np.ndarray:
    """Return the [3, 3] rotation of a quaternion, which is normalised first.

    Raises ValueError for a quaternion that is not finite or has no direction.
    """
    n = math.sqrt(w * w + x * x + y * y + z * z)
    if not math.isfinite(n) or n < QUATERNION_TOLERANCE:
        raise ValueError(f"({w}, {x}, {y}, {z}) is no rotation: the quaternion's norm is {n}")
    w, x, y, z = w / n, x / n, y / n, z / n
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """Return the quaternion (w, x, y, z) with w >= 0 of a [3, 3] rotation.

    Shepperd's method: the largest of the four candidates is computed first, so no division is by a small number.
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
    """Return the [3, 3] counter-clockwise rotation about z by `yaw` rad."""
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
    """Project points [n, 3] with a [4, 4] depth-scaled matrix; return pixels [n, 2] and depths [n] (m).

    Pixels mean something only where the depth is positive.
    """
    scaled = transform_points(points2image, points)  # [n, 3]: u*d, v*d, d
    depth = scaled[:, 2]
    return scaled[:, :2] / np.maximum(depth, 1e-5)[:, None], depth


def intrinsics_4x4(intrinsics: np.ndarray) -> np.ndarray:
    """Return a [3, 3] camera matrix as [4, 4]."""
    k = np.eye(4)
    k[:3, :3] = intrinsics
    return k


def box_corners(centers: np.ndarray, sizes: np.ndarray, yaws: np.ndarray) -> np.ndarray:
    """Return the corners [n, 8, 3] of boxes: centers [n, 3], sizes [n, 3] (l, w, h), yaws [n].

    Corners 0-3 are the bottom face and 4-7 the top, counter-clockwise from front-left; 0, 3 (and 4, 7) are the front.
    """
    unit = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2.0
    unit = np.concatenate([np.c_[unit, -0.5 * np.ones(4)], np.c_[unit, 0.5 * np.ones(4)]])  # [8, 3]
    local = unit[None] * np.asarray(sizes, np.float64)[:, None]  # [n, 8, 3]
    c, s = np.cos(yaws)[:, None], np.sin(yaws)[:, None]
    x = local[..., 0] * c - local[..., 1] * s
    y = local[..., 0] * s + local[..., 1] * c
    return np.stack([x, y, local[..., 2]], -1) + np.asarray(centers, np.float64)[:, None]


def interpolate_transform(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """Return the rigid transform `weight` of the way from a to b (0..1): slerp and linear translation."""
    qa, qb = quaternion_from_rotation(a[:3, :3]), quaternion_from_rotation(b[:3, :3])
    dot = float(qa @ qb)
    if dot < 0:  # the two signs of a quaternion are one rotation: take the short way
        qb, dot = -qb, -dot
    angle = math.acos(min(dot, 1.0))
    if angle < 1e-6:
        q = (1 - weight) * qa + weight * qb
    else:
        q = (math.sin((1 - weight) * angle) * qa + math.sin(weight * angle) * qb) / math.sin(angle)
    translation = (1 - weight) * a[:3, 3] + weight * b[:3, 3]
    return make_transform(rotation_from_quaternion(*q), translation)


class PoseNotYetError(LookupError):
    """The pose asked for is newer than the newest one known: wait, it may come."""


class PoseTooOldError(LookupError):
    """The pose asked for is older than the history kept, or lies in a hole of it: it will not come."""


class PoseBuffer:
    """A bounded history of one moving frame's pose, interpolated between stamps.

    horizon: ns of history to keep, in at most POSES_KEPT poses.
    max_gap: ns; between two neighbours further apart nothing is interpolated.
    backstep: ns; a pose that much older than the newest is held back.  When JUMP_PROOF of them come with nothing newer
    in between, time itself has jumped back (a bag that loops): they replace the history.
    """

    JUMP_PROOF = 3
    #: enough for the default horizon at 500 Hz; the horizon alone bounds nothing where stamps hardly advance
    POSES_KEPT = 10_000

    def __init__(
        self, horizon: int = 20_000_000_000, max_gap: int = 2_000_000_000, backstep: int = 1_000_000_000
    ) -> None:
        """Start empty."""
        self.horizon = horizon
        self.max_gap = max_gap
        self.backstep = backstep
        self._stamps: deque[int] = deque()
        self._poses: deque[np.ndarray] = deque()
        self._held_back: list[tuple[int, np.ndarray]] = []

    def __len__(self) -> int:
        """Return the number of poses held."""
        return len(self._stamps)

    @property
    def newest(self) -> int | None:
        """The newest stamp held, or None."""
        return self._stamps[-1] if self._stamps else None

    def add(self, stamp: int, pose: np.ndarray) -> None:
        """Insert a pose [4, 4]; order does not matter within `backstep`, an equal stamp replaces."""
        if self._stamps and stamp < self._stamps[-1] - self.backstep:
            self._held_back.append((stamp, pose))
            if len(self._held_back) < self.JUMP_PROOF:
                return
            self._stamps.clear()
            self._poses.clear()
            earlier = self._held_back[:-1]
            self._held_back = []
            for held_stamp, held_pose in earlier:
                self.add(held_stamp, held_pose)
        self._held_back.clear()
        at = bisect.bisect_left(self._stamps, stamp)
        if at < len(self._stamps) and self._stamps[at] == stamp:
            self._poses[at] = pose
            return
        self._stamps.insert(at, stamp)
        self._poses.insert(at, pose)
        while self._stamps[-1] - self._stamps[0] > self.horizon or len(self._stamps) > self.POSES_KEPT:
            self._stamps.popleft()
            self._poses.popleft()

    def lookup(self, stamp: int) -> np.ndarray:
        """Return the pose [4, 4] at `stamp`.

        Raises PoseNotYetError when `stamp` is newer than everything held, PoseTooOldError when it is older or
        falls between two poses more than `max_gap` apart.
        """
        if not self._stamps or stamp > self._stamps[-1]:
            raise PoseNotYetError("no pose yet" if self._stamps else "no pose at all yet")
        at = bisect.bisect_left(self._stamps, stamp)
        if self._stamps[at] == stamp:
            return self._poses[at]
        if at == 0 and self._held_back:
            raise PoseNotYetError("poses have begun to come from the past; time may have jumped back")
        if at == 0:
            behind = (self._stamps[0] - stamp) / 1e9
            raise PoseTooOldError(f"{behind:.3f} s older than the oldest pose kept")
        before, after = self._stamps[at - 1], self._stamps[at]
        if after - before > self.max_gap:
            raise PoseTooOldError(f"falls into a hole of {(after - before) / 1e9:.3f} s between two poses")
        weight = (stamp - before) / (after - before)
        return interpolate_transform(self._poses[at - 1], self._poses[at], weight)
