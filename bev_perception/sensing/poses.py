"""Interpolated poses of one moving frame over time."""

from __future__ import annotations

import bisect
from collections import deque

import numpy as np

from bev_perception.geometry import interpolate_transform


class PoseNotYetError(LookupError):
    """The requested pose is newer than the newest known one; it may still arrive."""


class PoseTooOldError(LookupError):
    """The requested pose is older than the history, or lies in a gap of it; it will not arrive."""


class PoseBuffer:
    """A bounded history of one moving frame's pose, interpolated between stamps.

    horizon: length of the history to keep, ns, in at most POSES_KEPT poses
    max_gap: longest interval between two poses that is interpolated, ns
    backstep: ns; a pose that is older than the newest one by more than this is held back. If JUMP_PROOF such poses
        arrive with no newer one in between, time has jumped back (as in a bag that loops), and they replace the history
    """

    JUMP_PROOF = 3
    #: enough for the default horizon at 500 Hz; needed since the horizon limits nothing if stamps hardly advance
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
        """Return the number of poses in the history."""
        return len(self._stamps)

    @property
    def newest(self) -> int | None:
        """The newest stamp in the history (ns), or None."""
        return self._stamps[-1] if self._stamps else None

    def add(self, stamp: int, pose: np.ndarray) -> None:
        """Insert a pose [4, 4]; within `backstep` in any order. A pose with the same stamp is replaced."""
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

        Raises PoseNotYetError if `stamp` is newer than every pose, or if it is older but time may have jumped back;
        PoseTooOldError if it is older than every pose or falls between two poses more than `max_gap` apart.
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
