"""Decide whether a frame continues the frames before it, and whether it is remembered."""

from __future__ import annotations

import math

import numpy as np

from bev_perception.geometry import invert_transform, yaw_from_rotation
from bev_perception.types import Frame

#: s, shortest time that a speed is computed over, so that jitter between close stamps does not count as a jump
SHORTEST_STEP = 0.05
#: fraction of the memory interval by which a frame may be early and is still remembered: camera stamps jitter
COMMIT_SLACK = 0.1


class Continuity:
    """The last frame that gave a result, and the last one that was remembered."""

    def __init__(self, max_gap: float) -> None:
        """Start without a frame.

        max_gap: s; a frame after a longer gap does not continue the frames before
        """
        self.max_gap = max_gap
        self._last: tuple[int, np.ndarray] | None = None
        self._last_remembered: int | None = None

    def break_before(self, frame: Frame, max_speed: float, max_turn_rate: float) -> tuple[str, str] | None:
        """Return why a frame does not continue the last one, as a cause and a message; None if it does.

        max_speed: m/s; faster ego motion is a pose jump
        max_turn_rate: rad/s; faster turning is a pose jump
        """
        if self._last is None:
            return None
        last_stamp, last_pose = self._last
        seconds = (frame.stamp - last_stamp) / 1e9
        if seconds <= 0:
            return "time ran backwards", f"by {-seconds:.3f} s"
        if seconds > self.max_gap:
            return "gap", f"{seconds:.3f} s without a frame; the variants allow {self.max_gap} s"
        motion = invert_transform(last_pose) @ frame.ego2global
        distance, turn = float(np.linalg.norm(motion[:3, 3])), abs(yaw_from_rotation(motion[:3, :3]))
        step = max(seconds, SHORTEST_STEP)
        if distance > max_speed * step or turn > max_turn_rate * step:
            return "pose jump", f"{distance:.2f} m and {math.degrees(turn):.1f} degrees in {seconds:.3f} s"
        return None

    def is_due(self, stamp: int, interval: float) -> bool:
        """Return whether a frame is to be remembered, so that one is every `interval` s.

        stamp: of the frame, ns
        interval: s
        """
        if self._last_remembered is None:
            return True
        return stamp - self._last_remembered >= (1 - COMMIT_SLACK) * interval * 1e9

    def restart(self) -> None:
        """Note that the memory has been wiped, so that the next frame is due."""
        self._last_remembered = None

    def passed(self, frame: Frame, remembered: bool) -> None:
        """Note a frame that gave a result, and whether it was remembered."""
        self._last = (frame.stamp, frame.ego2global)
        if remembered:
            self._last_remembered = frame.stamp
