"""Pictures of a frame and its boxes: every camera with the boxes drawn in, beside a bird's-eye view."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from bev_perception.files import whole_file
from bev_perception.geometry import box_corners, invert_transform, transform_points
from bev_perception.types import Boxes3D, Frame
from bev_perception.visualization.canvas import (
    FRACTION_BITS,
    TEXT,
    BirdsEye,
    Color,
    Tile,
    bgr_colors,
    dashed_line,
    draw_cameras,
    draw_caption,
    fixed,
    put_text,
)
from bev_perception.visualization.tracks import draw_labels, draw_tracks, trails_in_ego

TILE_WIDTH, TILE_HEIGHT = 640, 360  # pixels, of one camera's picture
NEAR = 0.1  # m, nothing nearer to a camera is drawn
MIN_SPEED = 0.5  # m/s, slower boxes get no arrow
TRUTH: Color = (255, 255, 255)  # colour of the ground truth's boxes, which are dashed
NO_TRAILS: Mapping[int, np.ndarray] = {}
_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
_FRONT_CROSS = ((0, 7), (3, 4))  # diagonals of the front face, see geometry.box_corners


def draw_frame(
    frame: Frame,
    images: Mapping[str, np.ndarray],
    boxes: Boxes3D,
    note: str = "",
    truth: Boxes3D | None = None,
    trails: Mapping[int, np.ndarray] = NO_TRAILS,
    scores: bool = False,
) -> np.ndarray:
    """Return a BGR picture of the frame: two rows of cameras, a bird's-eye view, and a strip with `note` at the bottom.

    Boxes are labelled with their track ids.

    images: camera -> its decoded image [H, W, 3] BGR uint8, as it was taken (lens distortion is removed here)
    boxes: in base_link at the frame's stamp; each camera shows them from the ego pose at its own stamp
    note: text of the strip
    truth: ground-truth boxes, like `boxes`, drawn with white dashes; None draws none
    trails: track id -> centres [k, 3] in the global frame, drawn from above
    scores: whether boxes are labelled with their scores, too, in percent
    """

    def draw(tile: Tile) -> None:
        if truth is not None:
            draw_wireframes(tile, frame.ego2global, truth, [TRUTH] * len(truth), dashed=True)
        draw_wireframes(tile, frame.ego2global, boxes, box_colors(boxes))
        draw_labels(tile, frame.ego2global, boxes, box_colors(boxes), scores)

    cameras = draw_cameras(frame, images, (TILE_WIDTH, TILE_HEIGHT), 2, draw)
    above = draw_birds_eye(boxes, 2 * TILE_HEIGHT, truth, trails_in_ego(trails, frame.ego2global))
    picture = np.hstack([cameras, above])
    state = f"t = {frame.stamp / 1e9:.3f} s   {len(boxes)} boxes"
    if truth is not None:
        state += f", {len(truth)} in truth"
    return np.vstack([picture, draw_caption(picture.shape[1], note, state)])


def draw_birds_eye(
    boxes: Boxes3D, size: int, truth: Boxes3D | None = None, trails: Mapping[int, np.ndarray] = NO_TRAILS
) -> np.ndarray:
    """Return a BGR picture [size, size, 3] of boxes in base_link from above, +x up, REACH m in each direction.

    truth: ground-truth boxes in base_link, drawn with white dashes; None draws none
    trails: track id -> centres [k, 3] in base_link
    """
    view = BirdsEye(size)
    view.draw_rings()
    view.draw_ego()
    if truth is not None:
        view.draw_boxes(truth, [TRUTH] * len(truth), dashed=True)
    view.draw_boxes(boxes, box_colors(boxes))
    noses = box_corners(boxes.centers, boxes.sizes, boxes.yaws)[:, [0, 3], :2].mean(1)  # [n, 2]
    for i in np.flatnonzero(np.hypot(*boxes.velocities.T) >= MIN_SPEED):  # the distance travelled in one second
        tail, tip = fixed(view.pixels(np.stack([noses[i], noses[i] + boxes.velocities[i]])))
        cv2.arrowedLine(view.canvas, tail, tip, TEXT, 1, cv2.LINE_AA, FRACTION_BITS, tipLength=0.2)
    draw_tracks(view, boxes, trails)
    _draw_legend(view.canvas, boxes, truth)
    return view.canvas


def draw_wireframes(
    tile: Tile, ego2global: np.ndarray, boxes: Boxes3D, colors: list[Color], dashed: bool = False
) -> None:
    """Draw boxes into a camera's tile, far ones first, each with a cross on its front.

    ego2global: [4, 4] of the base_link that the boxes are in
    colors: one per box
    dashed: whether to draw thin dashed lines
    """
    corners = box_corners(boxes.centers, boxes.sizes, boxes.yaws).reshape(-1, 3)  # [n * 8, 3]
    ego2camera = invert_transform(tile.view.ego2global @ tile.view.sensor2ego) @ ego2global
    local = transform_points(ego2camera, corners).reshape(-1, 8, 3)
    camera = tile.source2tile @ tile.view.calibration.intrinsics
    for i in np.argsort(-local[:, :, 2].mean(1)):
        _draw_wireframe(tile.picture, local[i], camera, colors[i], dashed)


def box_colors(boxes: Boxes3D) -> list[Color]:
    """Return the colour of every box, which is that of its class."""
    colors = bgr_colors(boxes.class_names)
    return [colors[label] for label in boxes.labels.tolist()]


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a BGR picture as a PNG file, which only appears once it is complete."""
    encoded = cv2.imencode(".png", picture)[1]
    with whole_file(Path(path)) as partial:
        partial.write_bytes(encoded.tobytes())


def _draw_wireframe(picture: np.ndarray, corners: np.ndarray, camera: np.ndarray, color: Color, dashed: bool) -> None:
    """Draw a box's edges and a cross on its front.

    corners: [8, 3] in the camera's frame, m
    camera: [3, 3] from the camera's frame to depth-scaled pixels of the picture
    """
    for edges, thickness in ((_EDGES, 2), (_FRONT_CROSS, 1)):
        for a, b in edges:
            segment = _clip_near(corners[a], corners[b])
            if segment is None:
                continue
            pixels = segment @ camera.T
            pixels = pixels[:, :2] / pixels[:, 2:]
            reach = 20 * picture.shape[1]
            start, end = fixed(np.clip(pixels, -reach, reach))
            if dashed:
                dashed_line(picture, start, end, color)
            else:
                cv2.line(picture, start, end, color, thickness, cv2.LINE_AA, FRACTION_BITS)


def _clip_near(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """Return the part [2, 3] of the segment a-b beyond the near plane; None if there is none."""
    if a[2] < NEAR and b[2] < NEAR:
        return None
    if a[2] < NEAR:
        a = a + (NEAR - a[2]) / (b[2] - a[2]) * (b - a)
    elif b[2] < NEAR:
        b = b + (NEAR - b[2]) / (a[2] - b[2]) * (a - b)
    return np.stack([a, b])


def _draw_legend(canvas: np.ndarray, boxes: Boxes3D, truth: Boxes3D | None) -> None:
    """List the classes with their colours and numbers of boxes; with `truth`, explain solid and dashed boxes."""
    colors = bgr_colors(boxes.class_names)
    top = canvas.shape[0] - 12 - 17 * (len(boxes.class_names) - 1)
    for k, name in enumerate(boxes.class_names):
        y = top + 17 * k
        cv2.rectangle(canvas, (8, y - 9), (18, y + 1), colors[k], -1)
        number = f"{(boxes.labels == k).sum()}"
        if truth is not None:
            number += f" / {(truth.labels == k).sum()}"
        put_text(canvas, f"{name} {number}", (24, y), TEXT, 0.4)
    if truth is not None:
        cv2.line(canvas, (8, 16), (38, 16), colors[0], 2)
        put_text(canvas, f"predicted: {len(boxes)}, in the class's colour", (46, 20), TEXT, 0.4)
        dashed_line(canvas, fixed(np.array([8, 33])), fixed(np.array([38, 33])), TRUTH)
        put_text(canvas, f"ground truth: {len(truth)}, dashed", (46, 37), TEXT, 0.4)
