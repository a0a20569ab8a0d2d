"""Track ids and trails in pictures: each track has a colour of its own, beside the class's colour of its box."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from bev_perception.classes import track_color
from bev_perception.geometry import invert_transform, project, transform_points
from bev_perception.types import NO_TRACK, Boxes3D
from bev_perception.visualization.canvas import BACKGROUND, FRACTION_BITS, BirdsEye, Color, Tile, fixed

ID_SIZE = 0.42  # scale of OpenCV's font
NEAR = 0.5  # m, the ids of boxes nearer to a camera are not drawn
RAISED = 4  # pixels, of an id above its box


def draw_ids(tile: Tile, ego2global: np.ndarray, boxes: Boxes3D) -> None:
    """Write the ids of tracks over their boxes in a camera's tile.

    ego2global: [4, 4] of the base_link that the boxes are in
    boxes: those without a track get no text
    """
    if boxes.track_ids is None:
        return
    tops = boxes.centers + np.stack([np.zeros(len(boxes)), np.zeros(len(boxes)), boxes.sizes[:, 2] / 2], axis=1)
    ego2camera = invert_transform(tile.view.ego2global @ tile.view.sensor2ego) @ ego2global
    camera = np.eye(4)
    camera[:3, :3] = tile.source2tile @ tile.view.calibration.intrinsics
    pixels, depths = project(camera @ ego2camera, tops)
    height, width = tile.picture.shape[:2]
    inside = (depths > NEAR) & (pixels >= 0).all(axis=1) & (pixels < (width, height)).all(axis=1)
    for i in np.flatnonzero(inside & (boxes.track_ids != NO_TRACK)):
        _write_id(tile.picture, int(boxes.track_ids[i]), pixels[i] - (0, RAISED))


def draw_tracks(view: BirdsEye, boxes: Boxes3D, trails: Mapping[int, np.ndarray]) -> None:
    """Draw trails from above, and the ids of tracks beside their boxes.

    boxes: in base_link
    trails: track id -> centres [k, 3] in base_link
    """
    for track, line in trails.items():
        way = fixed(view.pixels(line))
        cv2.polylines(view.canvas, [way], False, _bgr(track), 1, cv2.LINE_AA, FRACTION_BITS)
    if boxes.track_ids is None:
        return
    beside = view.pixels(boxes.centers) + np.array([RAISED, -RAISED])
    for i in np.flatnonzero((boxes.track_ids != NO_TRACK) & (np.abs(boxes.centers[:, :2]) < view.reach).all(axis=1)):
        _write_id(view.canvas, int(boxes.track_ids[i]), beside[i])


def trails_in_ego(trails: Mapping[int, np.ndarray], ego2global: np.ndarray) -> dict[int, np.ndarray]:
    """Return trails of the global frame in base_link; ego2global is [4, 4]."""
    global2ego = invert_transform(ego2global)
    return {track: transform_points(global2ego, line) for track, line in trails.items()}


def _write_id(picture: np.ndarray, track: int, at: np.ndarray) -> None:
    """Write an id with a dark rim, its left end at the pixel `at` [2]."""
    where = tuple(np.round(at).astype(int).tolist())
    for color, thickness in ((BACKGROUND, 3), (_bgr(track), 1)):
        cv2.putText(picture, str(track), where, cv2.FONT_HERSHEY_SIMPLEX, ID_SIZE, color, thickness, cv2.LINE_AA)


def _bgr(track: int) -> Color:
    r, g, b = track_color(track)
    return b, g, r
