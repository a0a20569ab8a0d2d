"""The poses of one frame over time, each with the parent that it is relative to, as tf2's cache keeps them."""

from __future__ import annotations

import bisect

import numpy as np

from bev_perception.geometry import interpolate_transform

#: s; the most that tf_timeout can be: what waits is bounded by counts
MAX_TF_TIMEOUT = 2.0
#: ns of poses that are remembered: what tf2 keeps by default, so that whatever can be looked up there can be here. A
#: link may be as slow as one pose in 10 s, and an image may be 10 s late
HORIZON = 10_000_000_000


class PoseNotYetError(LookupError):
    """The requested pose is newer than the newest known one; it may still arrive."""


class PoseTooOldError(LookupError):
    """The requested pose is older than the history; it will not arrive."""


class PoseBuffer:
    """A bounded history of one moving frame, interpolated between stamps.

    Any order is taken within the horizon. A pose that is older than that is held back; if JUMP_PROOF of them arrive
    with no newer one in between, time has jumped back (as in a bag that loops, or after a stamp from the far future),
    and they replace the history. tf2 waits for ever in this case.
    """

    JUMP_PROOF = 3
    #: enough for the horizon at 1 kHz; needed since the horizon limits nothing if stamps hardly advance
    POSES_KEPT = 10_000

    def __init__(self, horizon: int = HORIZON) -> None:
        """Start empty.

        horizon: ns; poses that are older than the newest one by more are forgotten.
        """
        self.horizon = horizon
        self._stamps: list[int] = []  # ascending; of equal ones the newest to arrive is last
        self._poses: list[tuple[str, np.ndarray]] = []
        self._held_back: list[tuple[int, str, np.ndarray]] = []

    def __len__(self) -> int:
        """Return the number of poses in the history."""
        return len(self._stamps)

    @property
    def newest(self) -> int | None:
        """The newest stamp in the history (ns), or None."""
        return self._stamps[-1] if self._stamps else None

    @property
    def parent(self) -> str | None:
        """The parent of the newest pose, or None."""
        return self._poses[-1][0] if self._poses else None

    def add(self, stamp: int, parent: str, pose: np.ndarray) -> None:
        """Insert a pose.

        stamp: ns.
        parent: frame that the pose is relative to.
        pose: [4, 4].
        """
        if self._stamps and stamp < self._stamps[-1] - self.horizon:
            self._hold_back(stamp, parent, pose)
            return
        self._held_back.clear()
        at = bisect.bisect_right(self._stamps, stamp)
        if at and self._stamps[at - 1] == stamp and self._holds(at - 1, parent, pose):
            return
        self._stamps.insert(at, stamp)
        self._poses.insert(at, (parent, pose))
        first = bisect.bisect_left(self._stamps, self._stamps[-1] - self.horizon)
        first = max(first, len(self._stamps) - self.POSES_KEPT)
        if first > 0:
            del self._stamps[:first], self._poses[:first]

    def forget_after(self, stamp: int) -> None:
        """Forget the poses that are newer than `stamp` (ns): time has jumped back, and they belong to another run."""
        kept = bisect.bisect_right(self._stamps, stamp)
        del self._stamps[kept:], self._poses[kept:]
        self._take_held_back()

    def lookup(self, stamp: int) -> tuple[str, np.ndarray]:
        """Return the parent and the pose [4, 4] at `stamp` (ns).

        Between two poses with different parents, the earlier one holds, as in tf2.

        Raises PoseNotYetError if `stamp` is newer than every pose, or if it is older but time may have jumped back;
        PoseTooOldError if it is older than every pose.
        """
        if not self._stamps or stamp > self._stamps[-1]:
            raise PoseNotYetError(self._not_yet(stamp))
        if stamp < self._stamps[0]:
            if self._held_back:
                raise PoseNotYetError("poses have begun to come from the past; time may have jumped back")
            behind = (self._stamps[0] - stamp) / 1e9
            raise PoseTooOldError(f"{behind:.3f} s older than the oldest pose kept")
        at = 0 if stamp == self._stamps[0] < self._stamps[-1] else bisect.bisect_right(self._stamps, stamp) - 1
        parent, pose = self._poses[at]
        before = self._stamps[at]
        if before == stamp or self._poses[at + 1][0] != parent:
            return parent, pose
        weight = (stamp - before) / (self._stamps[at + 1] - before)
        return parent, interpolate_transform(pose, self._poses[at + 1][1], weight)

    def _holds(self, at: int, parent: str, pose: np.ndarray) -> bool:
        return self._poses[at][0] == parent and np.array_equal(self._poses[at][1], pose)

    def _not_yet(self, stamp: int) -> str:
        if not self._stamps:
            return "no pose at all yet"
        return f"no pose yet, the newest is {(stamp - self._stamps[-1]) / 1e9:.3f} s older than the image"

    def _hold_back(self, stamp: int, parent: str, pose: np.ndarray) -> None:
        self._held_back.append((stamp, parent, pose))
        if len(self._held_back) < self.JUMP_PROOF:
            return
        self._stamps.clear()
        self._poses.clear()
        self._take_held_back()

    def _take_held_back(self) -> None:
        held, self._held_back = self._held_back, []
        for earlier in held:
            self.add(*earlier)


def timeout_remedy(needed: float, rounded: str) -> str:
    """Return what to do about poses that come `needed` s late; `rounded` is the tf_timeout for it."""
    if needed <= MAX_TF_TIMEOUT:
        return f"set tf_timeout to {rounded}"
    return (
        f"publish the odometry sooner, since tf_timeout can be {MAX_TF_TIMEOUT:g} s at most; compare the clocks of the "
        "computers if it is not so late"
    )
