"""Where SparseBEV looks: the points at which its queries sample the images, stage by stage, over the cameras."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from bev_perception.config import VariantConfig
from bev_perception.families.sparsebev.model import SparseBEV, SparseBEVOutput
from bev_perception.geometry import invert_transform, transform_points
from bev_perception.ops.sampling import project_points
from bev_perception.sensing.preprocess import image_transform, reference2global
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
LINE = 17  # pixels, of the legend
LISTED = 12  # queries, named in the legend


@dataclass(frozen=True)
class SamplingTrace:
    """Where one run of SparseBEV sampled, and what it found; S stages (decoder layers), T frames, the current first.

    points: [S, T, Q, K, 3] m in the model's reference frame, of the K = groups * points a group.
    reference2image: [T, N, 4, 4], to the depth-scaled pixels of the network's input images.
    image_size: (height, width) of those, pixels.
    time_differences: [T] s, how much older each frame is than the first.
    output: of the model; the batch is 1.
    """

    points: Tensor
    reference2image: Tensor
    image_size: tuple[int, int]
    time_differences: np.ndarray
    output: SparseBEVOutput

    def best(self, count: int) -> list[int]:
        """Return the numbers of the queries with the best class scores of the last stage, the best first."""
        scores = self.output.logits[-1, 0].amax(dim=-1).cpu().numpy()  # [Q]
        found: list[int] = np.argsort(-scores, kind="stable")[:count].tolist()
        return found

    def samples(self, queries: Sequence[int], frame: int) -> Samples:
        """Return where some queries sample one of the frames; 0 is the current one."""
        points = self.points[:, frame][:, list(queries)]  # [S, n, K, 3]
        uv, _, visible = project_points(
            points.reshape(1, 1, -1, 3), self.reference2image[None, None, frame], self.image_size
        )  # [1, 1, N, 2, S*n*K], [1, 1, N, S*n*K]
        shape, cameras = points.shape[:3], len(visible[0, 0])
        height, width = self.image_size
        pixels = (uv[0, 0] * uv.new_tensor([width, height])[:, None]).permute(2, 0, 1)  # [S*n*K, N, 2]
        seen = visible[0, 0].T.cpu().numpy()  # [S*n*K, N]
        camera = np.where(seen.any(axis=1), seen.argmax(axis=1), -1)
        return Samples(
            points.cpu().numpy(),
            pixels.reshape(*shape, cameras, 2).cpu().numpy(),
            seen.reshape(*shape, cameras),
            camera.reshape(shape),
        )


@dataclass(frozen=True)
class Samples:
    """Where n queries sample one frame.

    points: [S, n, K, 3] m, in the model's reference frame.
    pixels: [S, n, K, N, 2], of the network's input image of each camera; of no meaning where not visible.
    visible: [S, n, K, N] bool, the camera sees the point.
    camera: [S, n, K], the one that the features are taken from, the first that sees the point; -1: none does.
    """

    points: np.ndarray
    pixels: np.ndarray
    visible: np.ndarray
    camera: np.ndarray


@contextmanager
def record_sampling(model: SparseBEV) -> Iterator[list[SamplingTrace]]:
    """Note down every run of the model inside of the `with` block, one entry a run; afterwards it is as before."""
    traces: list[SamplingTrace] = []
    points: list[Tensor] = []  # one entry a stage: [T, Q, K, 3]

    def after_stage(_module: nn.Module, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        points.append(outputs[0][0].flatten(2, 3))

    def after_run(_module: nn.Module, inputs: tuple[Any, ...], output: SparseBEVOutput) -> None:
        _, reference2image, time_differences, image_size, *_ = inputs
        seconds = time_differences[0].cpu().numpy()
        traces.append(SamplingTrace(torch.stack(points), reference2image[0], image_size, seconds, output))
        points.clear()

    head = model.pts_bbox_head
    hooks = [
        head.decoder_layer.get_submodule("sampling").register_forward_hook(after_stage),
        head.register_forward_hook(after_run),
    ]
    try:
        yield traces
    finally:
        for hook in hooks:
            hook.remove()


def draw_points(
    frame: Frame,
    images: Mapping[str, np.ndarray],
    samples: Samples,
    queries: Sequence[int],
    boxes: Boxes3D,
    current: Frame,
    config: VariantConfig,
    note: str = "",
) -> np.ndarray:
    """Return a BGR picture of a frame's cameras, the sampling points in them, beside the view from above.

    A dot is sampled from this camera; a ring is seen by it too, but sampled from another, an earlier one.
    frame, images: the frame that `samples` are of, see canvas.draw_cameras; `current`, or a past one.
    queries: [n], their numbers.  boxes: [n], what they found, in the base_link of `current`.  config: of the variant.
    """
    colors = stage_colors(len(samples.points))

    def draw(tile: Tile) -> None:
        calibration = tile.view.calibration
        transform = image_transform((calibration.height, calibration.width), config.image)
        input2tile = tile.source2tile @ np.linalg.inv(transform.ida[:3, :3])
        if frame is current:
            draw_wireframes(tile, current.ego2global, boxes, box_colors(boxes))
        _draw_samples(tile, samples, frame.cameras.index(tile.name), input2tile, colors, queries)

    cameras = draw_cameras(frame, images, (TILE_WIDTH, TILE_HEIGHT), 2, draw)
    view = BirdsEye(2 * TILE_HEIGHT)
    view.draw_rings()
    view.draw_ego()
    view.draw_boxes(boxes, box_colors(boxes))
    reference2ego = invert_transform(current.ego2global) @ reference2global(config, current)
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
    """Draw one camera's points, the last stage on top, and the queries' numbers beside their last points."""
    pixels = samples.pixels[..., camera, :] @ input2tile[:2, :2].T + input2tile[:2, 2]  # [S, n, K, 2]
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
    """Write what the queries found, and from which camera how many points are sampled in each stage."""
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
