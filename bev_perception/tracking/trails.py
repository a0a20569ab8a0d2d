"""The way that each track has come, for pictures and markers."""

from __future__ import annotations

from collections import deque

import numpy as np

from bev_perception.geometry import transform_points
from bev_perception.types import NO_TRACK, Boxes3D

#: s, length of a trail
TRAIL = 3.0


class Trails:
    """The places of all tracks in the last TRAIL seconds.

    Memory is bounded by the frames of that time. A trail ends with the box that was seen last, fades from its tail when
    no more come, and is gone after TRAIL.
    """

    def __init__(self) -> None:
        """Start without trails."""
        self._frames: deque[tuple[int, np.ndarray, np.ndarray]] = deque()  # stamp, ids [n], centres [n, 3]

    def add(self, stamp: int, boxes: Boxes3D, ego2global: np.ndarray) -> None:
        """Add the boxes of a frame; those without a track leave no trail.

        stamp: ns, of the frame
        boxes: in base_link
        ego2global: [4, 4]
        """
        while self._frames and self._frames[0][0] < stamp - round(TRAIL * 1e9):
            self._frames.popleft()
        if boxes.track_ids is not None:
            tracked = boxes.track_ids != NO_TRACK
            self._frames.append((stamp, boxes.track_ids[tracked], transform_points(ego2global, boxes.centers[tracked])))

    def clear(self) -> None:
        """Forget all trails, as after a wipe of the memory."""
        self._frames.clear()

    def lines(self) -> dict[int, np.ndarray]:
        """Return track id -> centres [k, 3] in the global frame, oldest first, of all tracks with two at least."""
        places: dict[int, list[np.ndarray]] = {}
        for _, ids, centers in self._frames:
            for track, center in zip(ids.tolist(), centers, strict=True):
                places.setdefault(track, []).append(center)
        return {track: np.stack(line) for track, line in places.items() if len(line) > 1}
