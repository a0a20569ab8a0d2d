"""Pictures of a query decoder's sampling points: where queries sample the images, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from bev_perception.config import VariantConfig
from bev_perception.geometry import transform_points
from bev_perception.models.sampling_trace import Samples
from bev_perception.sensing.image_fit import IMAGE_FIT, fit_view
from bev_perception.sensing.preprocess import reference2base
from bev_perception.types import Boxes3D, Frame
from bev_perception.visualization.canvas import (
    TEXT,
    BirdsEye,
    Color,
    Tile,
    draw_cameras,
    draw_caption,
    draw_dots,
    put_text,
)
from bev_perception.visualization.pictures import TILE_HEIGHT, TILE_WIDTH, box_colors, draw_wireframes

RADIUS = 2.5  # pixels, of a point in a camera
LINE = 17  # pixels, height of a line of the legend
LISTED = 12  # largest number of queries in the legend


def draw_points(
    frame: Frame,
    images: Mapping[str, np.ndarray],
    samples: Samples,
    queries: Sequence[int],
    boxes: Boxes3D,
    current: Frame,
    config: VariantConfig,
    note: str = "",
    image_fit: str = IMAGE_FIT,
) -> np.ndarray:
    """Return a BGR picture of a frame's cameras with the sampling points drawn in, beside a bird's-eye view.

    A dot marks a point that is sampled from this camera. A ring marks a point that this camera sees, too, but that is
    sampled from another, earlier one.

    frame: the frame that `samples` belong to, either `current` or a past one
    images: of the cameras of `frame`, see canvas.draw_cameras
    samples: of the queries
    queries: [n] their numbers
    boxes: [n] what they found, in the base_link of `current`
    current: the frame that the model was run on
    config: of the variant
    note: text of the strip at the bottom
    image_fit: how pictures became inputs, see sensing/image_fit.py
    """
    colors = stage_colors(len(samples.points))

    def draw(tile: Tile) -> None:
        calibration, sensor2ego = tile.view.calibration, tile.view.sensor2ego
        fitted = fit_view(calibration, sensor2ego, config, image_fit)
        turn = np.eye(3) if fitted.turn is None else fitted.turn
        ray2input = fitted.transform.ida[:3, :3] @ fitted.calibration.intrinsics @ turn
        input2tile = tile.source2tile @ calibration.intrinsics @ np.linalg.inv(ray2input)
        if frame is current:
            draw_wireframes(tile, current.ego2global, boxes, box_colors(boxes))
        _draw_samples(tile, samples, frame.cameras.index(tile.name), input2tile, colors, queries)

    cameras = draw_cameras(frame, images, (TILE_WIDTH, TILE_HEIGHT), 2, draw)
    view = BirdsEye(2 * TILE_HEIGHT)
    view.draw_rings()
    view.draw_ego()
    view.draw_boxes(boxes, box_colors(boxes))
    reference2ego = reference2base(config, current)
    for color, points in zip(colors, samples.points, strict=True):
        draw_dots(view.canvas, view.pixels(transform_points(reference2ego, points.reshape(-1, 3))), 1.5, color)
    found = zip(queries, boxes.labels.tolist(), boxes.scores.tolist(), strict=True)
    lines = [f"query {query}: {boxes.class_names[label]} {score:.2f}" for query, label, score in found]
    _draw_legend(view.canvas, samples, frame.cameras, colors, lines)
    picture = np.hstack([cameras, view.canvas])
    return np.vstack([picture, draw_caption(picture.shape[1], note, f"t = {frame.stamp / 1e9:.3f} s")])


def stage_colors(stages: int) -> list[Color]:
    """Return a colour for each stage, from blue for the first to red for the last."""
    hues = np.linspace(120, 0, stages).round().astype(np.uint8)
    hsv = np.stack([hues, np.full_like(hues, 255), np.full_like(hues, 255)], axis=1)
    return [(b, g, r) for b, g, r in cv2.cvtColor(hsv[None], cv2.COLOR_HSV2BGR)[0].tolist()]


def _draw_samples(
    tile: Tile, samples: Samples, camera: int, input2tile: np.ndarray, colors: list[Color], queries: Sequence[int]
) -> None:
    """Draw one camera's points, those of the last stage on top, and the queries' numbers beside their last points."""
    pixels = samples.pixels[..., camera, :] @ input2tile[:, :2].T + input2tile[:, 2]  # [S, n, K, 3]
    pixels = pixels[..., :2] / pixels[..., 2:]  # behind the real camera there is nothing of its picture
    sampled = samples.camera == camera
    seen = samples.visible[..., camera]
    for stage, color in enumerate(colors):
        draw_dots(tile.picture, pixels[stage][seen[stage] & ~sampled[stage]], RADIUS, color, filled=False)
        draw_dots(tile.picture, pixels[stage][sampled[stage]], RADIUS, color)
    for row, query in enumerate(queries):
        last = pixels[-1, row][sampled[-1, row]]  # [k, 2]
        if len(last):
            x, y = np.round([last[:, 0].max() + 6, last[:, 1].mean()]).astype(int).tolist()
            put_text(tile.picture, str(query), (x, y), TEXT, 0.42)


def _draw_legend(
    canvas: np.ndarray, samples: Samples, cameras: Sequence[str], colors: list[Color], found: Sequence[str]
) -> None:
    """Write what the queries found, and how many points each stage samples from each camera."""
    for k, line in enumerate(found[:LISTED]):
        put_text(canvas, line, (8, 20 + LINE * k), TEXT, 0.4)
    top = canvas.shape[0] - 12 - LINE * (len(cameras) + 4)
    put_text(canvas, "dot: sampled from this camera", (8, top), TEXT, 0.4)
    put_text(canvas, "ring: seen here, sampled from another", (8, top + LINE), TEXT, 0.4)
    table = top + 3 * LINE
    put_text(canvas, "points of stage", (8, table), TEXT, 0.4)
    rows = [(number, name) for number, name in enumerate(cameras)] + [(-1, "no camera")]
    for row, (_, name) in enumerate(rows, start=1):
        put_text(canvas, name, (8, table + LINE * row), TEXT, 0.4)
    for stage, color in enumerate(colors):
        x = 130 + 34 * stage
        cv2.circle(canvas, (x + 4, table - 4), 4, color, -1, cv2.LINE_AA)
        put_text(canvas, str(stage + 1), (x + 12, table), TEXT, 0.4)
        for row, (number, _) in enumerate(rows, start=1):
            put_text(canvas, str((samples.camera[stage] == number).sum()), (x, table + LINE * row), TEXT, 0.4)
