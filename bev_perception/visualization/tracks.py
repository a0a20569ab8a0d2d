"""Labels of boxes, and trails: each track has a colour of its own in pictures, beside the class's colour of its box."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from bev_perception.classes import track_color
from bev_perception.geometry import invert_transform, project, transform_points
from bev_perception.types import NO_TRACK, Boxes3D
from bev_perception.visualization.canvas import BACKGROUND, FRACTION_BITS, BirdsEye, Color, Tile, fixed

LABEL_SIZE = 0.65  # scale of OpenCV's font in a camera's tile, legible where six of them fill a screen's width
ID_SIZE = 0.42  # the same from above, where boxes are dense
NEAR = 0.5  # m, boxes nearer to a camera get no label
RAISED = 4  # pixels, of a label above its box


def draw_labels(tile: Tile, ego2global: np.ndarray, boxes: Boxes3D, colors: list[Color], scores: bool) -> None:
    """Write track ids, in the colour of the track, and scores over the boxes in a camera's tile.

    A label that would cover that of a nearer box is left out.

    ego2global: [4, 4] of the base_link that the boxes are in
    colors: one per box, of its score
    scores: whether to write scores, in percent
    """
    tops = boxes.centers + np.stack([np.zeros(len(boxes)), np.zeros(len(boxes)), boxes.sizes[:, 2] / 2], axis=1)
    ego2camera = invert_transform(tile.view.ego2global @ tile.view.sensor2ego) @ ego2global
    camera = np.eye(4)
    camera[:3, :3] = tile.source2tile @ tile.view.calibration.intrinsics
    pixels, depths = project(camera @ ego2camera, tops)
    height, width = tile.picture.shape[:2]
    inside = (depths > NEAR) & (pixels >= 0).all(axis=1) & (pixels < (width, height)).all(axis=1)
    taken: list[np.ndarray] = []  # left, top, right, bottom, pixels
    for i in np.flatnonzero(inside)[np.argsort(depths[inside])]:
        texts = []
        if boxes.track_ids is not None and boxes.track_ids[i] != NO_TRACK:
            texts.append((f"{boxes.track_ids[i]} ", _bgr(int(boxes.track_ids[i]))))
        if scores:
            texts.append((f"{boxes.scores[i]:.0%}", colors[i]))
        if not texts:
            continue
        at = pixels[i] - (0, RAISED)
        sizes = [_size(text, LABEL_SIZE) for text, _ in texts]
        widths, heights = zip(*sizes, strict=True)
        place = np.array([at[0], at[1] - max(heights), at[0] + sum(widths), at[1]])
        if any((place[:2] < other[2:]).all() and (other[:2] < place[2:]).all() for other in taken):
            continue
        taken.append(place)
        for (text, color), (width, _) in zip(texts, sizes, strict=True):
            _write(tile.picture, text, at, color, LABEL_SIZE)
            at = at + np.array([width, 0])


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
        _write(view.canvas, str(boxes.track_ids[i]), beside[i], _bgr(int(boxes.track_ids[i])), ID_SIZE)


def trails_in_ego(trails: Mapping[int, np.ndarray], ego2global: np.ndarray) -> dict[int, np.ndarray]:
    """Return trails of the global frame in base_link; ego2global is [4, 4]."""
    global2ego = invert_transform(ego2global)
    return {track: transform_points(global2ego, line) for track, line in trails.items()}


def _write(picture: np.ndarray, text: str, at: np.ndarray, color: Color, size: float) -> None:
    """Write a text with a dark rim, its left end at the pixel `at` [2]."""
    where = tuple(np.round(at).astype(int).tolist())
    for ink, thickness in ((BACKGROUND, 4), (color, 1)):
        cv2.putText(picture, text, where, cv2.FONT_HERSHEY_SIMPLEX, size, ink, thickness, cv2.LINE_AA)


def _size(text: str, size: float) -> tuple[int, int]:
    """Return the width and height of a text, pixels."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    return width, height


def _bgr(track: int) -> Color:
    r, g, b = track_color(track)
    return b, g, r
