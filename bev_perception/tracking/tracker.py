"""Track ids for detectors without ids of their own, by greedy matching of box centres.

After CenterPoint (Yin et al., CVPR 2021): in the order of their scores, boxes are moved back in time by their velocity
and take over the nearest track of their class. A box without a track starts one; a track without boxes ends after a
while. Unlike there, times are seconds and not frames, so that any frame rate works.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from bev_perception.geometry import transform_points
from bev_perception.types import Boxes3D

#: the values of the setting `tracker`: ids only from models that give them, or also from this tracker
TRACKERS = ("none", "greedy")
#: m, how far apart a box and its track may be, by class: CenterPoint's limits, the 99.9th percentile of a detector's
#: error in velocity over INTERVAL; its task lacks the last three classes. They grow with the time since the track was
#: last seen, but do not shrink at higher rates, where errors of place are all that is left
LIMITS = {
    "car": 4.0,
    "truck": 4.0,
    "bus": 5.5,
    "trailer": 3.0,
    "pedestrian": 1.0,
    "motorcycle": 13.0,
    "bicycle": 3.0,
    "construction_vehicle": 4.0,
    "barrier": 1.0,
    "traffic_cone": 1.0,
}
#: m, limit of all other classes
OTHER_LIMIT = 4.0
#: s, the interval of frames that LIMITS are made for
INTERVAL = 0.5
#: s, how long a track lives without a box; three frames in CenterPoint
MAX_AGE = 1.5


def _empty(dtype: type, *shape: int) -> np.ndarray:
    return np.zeros((0, *shape), dtype)


@dataclass(frozen=True)
class Tracks:
    """The objects that are being followed, in ascending order of their ids. Immutable; `follow` returns new ones.

    ids: [n] int64
    labels: [n] int64, class indices
    centers: [n, 2], m, in the global frame, where the object was last seen
    stamps: [n] int64, ns, when it was last seen
    next_id: id of the next new track; ids are never given again, also not after `cleared`
    """

    ids: np.ndarray = field(default_factory=lambda: _empty(np.int64))
    labels: np.ndarray = field(default_factory=lambda: _empty(np.int64))
    centers: np.ndarray = field(default_factory=lambda: _empty(np.float64, 2))
    stamps: np.ndarray = field(default_factory=lambda: _empty(np.int64))
    next_id: int = 1

    def __len__(self) -> int:
        """Return the number of tracks."""
        return len(self.ids)

    def select(self, keep: np.ndarray) -> Tracks:
        """Return the tracks that `keep`, a mask or indices, selects."""
        return replace(
            self,
            ids=self.ids[keep],
            labels=self.labels[keep],
            centers=self.centers[keep],
            stamps=self.stamps[keep],
        )

    def cleared(self) -> Tracks:
        """Return no tracks, but the same `next_id`."""
        return Tracks(next_id=self.next_id)


def follow(tracks: Tracks, boxes: Boxes3D, boxes2global: np.ndarray, stamp: int) -> tuple[Tracks, np.ndarray]:
    """Return the tracks after a frame, and the track id of every box [n] int64.

    tracks: after the frame before; Tracks() at first
    boxes: of this frame; class indices mean the same in all frames
    boxes2global: [4, 4], from the frame of the boxes to one that does not move
    stamp: ns, of the frame

    The ids do not depend on the order of the boxes, only on their scores and places.

    Raises ValueError for a frame that is not newer than those before.
    """
    if len(tracks) and stamp <= tracks.stamps.max():
        raise ValueError(f"a frame at {stamp} ns follows one at {tracks.stamps.max()} ns; clear the tracks first")
    alive = tracks.select(tracks.stamps >= stamp - round(MAX_AGE * 1e9))
    centers = transform_points(boxes2global, np.asarray(boxes.centers, np.float64))[:, :2]
    velocities = np.asarray(boxes.velocities, np.float64) @ boxes2global[:2, :2].T
    order = np.lexsort((centers[:, 1], centers[:, 0], boxes.labels, -boxes.scores))

    taken = np.full(len(boxes), -1)  # index of each box's track
    for label in np.intersect1d(boxes.labels, alive.labels):
        rows, columns = order[boxes.labels[order] == label], np.flatnonzero(alive.labels == label)
        seconds = (stamp - alive.stamps[columns]) / 1e9  # [m], since each track was last seen
        moved_back = centers[rows, None] - seconds[:, None] * velocities[rows, None]  # [n, m, 2]
        distances = np.linalg.norm(moved_back - alive.centers[columns], axis=2)
        limits = LIMITS.get(boxes.class_names[label], OTHER_LIMIT) * np.maximum(1.0, seconds / INTERVAL)
        nearest = _match_greedily(np.where(distances <= limits, distances, np.inf))
        taken[rows[nearest >= 0]] = columns[nearest[nearest >= 0]]

    new = order[taken[order] < 0]
    ids = np.zeros(len(boxes), np.int64)
    ids[taken >= 0] = alive.ids[taken[taken >= 0]]
    ids[new] = tracks.next_id + np.arange(len(new))
    lost = alive.select(np.setdiff1d(np.arange(len(alive)), taken))
    after = Tracks(
        ids=np.concatenate([lost.ids, ids]),
        labels=np.concatenate([lost.labels, boxes.labels]),
        centers=np.concatenate([lost.centers, centers]),
        stamps=np.concatenate([lost.stamps, np.full(len(boxes), stamp, np.int64)]),
        next_id=tracks.next_id + len(new),
    )
    return after.select(np.argsort(after.ids)), ids


def _match_greedily(distances: np.ndarray) -> np.ndarray:
    """Let each row in turn take the nearest column that is left; return the columns [n], -1 for none.

    distances: [n, m], m > 0, infinite where a row must not take a column
    """
    taken = np.full(len(distances), -1)
    used = np.zeros(distances.shape[1])  # infinite for columns that are taken
    for i, row in enumerate(distances):
        nearest = int(np.argmin(row + used))
        if np.isfinite(row[nearest] + used[nearest]):
            taken[i] = nearest
            used[nearest] = np.inf
    return taken
