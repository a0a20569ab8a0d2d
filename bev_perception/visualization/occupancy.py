"""Pictures of occupancy: voxels in perspective and from above, ground truth beside them, cameras at the top."""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np

from bev_perception.classes import GOLDEN_RATIO, THINGS
from bev_perception.types import Frame, Occupancy
from bev_perception.visualization.canvas import (
    BACKGROUND,
    EGO_HEIGHT,
    EGO_LENGTH,
    EGO_REAR,
    EGO_WIDTH,
    TEXT,
    BirdsEye,
    bgr_colors,
    draw_cameras,
    draw_caption,
    put_text,
)
from bev_perception.visualization.voxels import VoxelView

PANEL = 960  # pixels, width of the panel of one occupancy
PERSPECTIVE_HEIGHT, BIRDS_EYE = 460, 480  # pixels, heights of its two parts; the legend is beside the second
BELOW, LEGEND = 720, 360  # pixels, below a picture of boxes: height of the occupancy, and width of its legend
CAMERA_TILE = (320, 180)  # pixels, width and height
EGO_COLOR = (240, 240, 240)
LINE = 22  # pixels, height of a line of the legend


def draw_occupancy(
    occupancy: Occupancy | None,
    truth: Occupancy | None = None,
    frame: Frame | None = None,
    images: Mapping[str, np.ndarray] | None = None,
    note: str = "",
) -> np.ndarray:
    """Return a BGR picture of an occupancy in perspective and from above, with the ground truth beside it.

    occupancy: the prediction; None leaves it out
    truth: the ground truth; None leaves it out, but one of the two must be given
    frame: whose cameras are drawn above; None draws no cameras
    images: of the cameras, see canvas.draw_cameras
    note: text of the strip at the bottom
    """
    panels = [
        _draw_panel(o, title) for o, title in ((occupancy, "predicted"), (truth, "ground truth")) if o is not None
    ]
    picture = np.hstack(panels)
    width = picture.shape[1]
    if frame is not None:
        rows = max(1, math.ceil(len(frame.cameras) * CAMERA_TILE[0] / width))
        cameras = draw_cameras(frame, images or {}, CAMERA_TILE, rows)
        strip = np.full((cameras.shape[0], width, 3), BACKGROUND, np.uint8)
        strip[:, : cameras.shape[1]] = cameras
        picture = np.vstack([strip, picture])
    state = "" if frame is None else f"t = {frame.stamp / 1e9:.3f} s"
    return np.vstack([picture, draw_caption(width, note, state)])


def draw_beside_boxes(boxes: np.ndarray, occupancy: Occupancy) -> np.ndarray:
    """Return a picture of boxes with the occupancy of the same frame below it.

    The occupancy is shown in perspective, and from above below the bird's-eye view of the boxes; between them is its
    legend.

    boxes: [H, W, 3] BGR, result of pictures.draw_frame
    """
    above = draw_occupancy_from_above(occupancy, BELOW)
    legend = _draw_legend(occupancy, (LEGEND, BELOW))
    perspective = draw_perspective(occupancy, (boxes.shape[1] - BELOW - LEGEND, BELOW))
    return np.vstack([boxes, np.hstack([perspective, legend, above])])


def draw_perspective(occupancy: Occupancy, size: tuple[int, int]) -> np.ndarray:
    """Return a BGR picture of the voxels and the car, seen from behind and above.

    size: width, height, pixels
    """
    view = VoxelView(size)
    resolution = occupancy.grid.resolution
    view.add(occupancy.occupied, voxel_colors(occupancy), occupancy.grid.origin, (resolution,) * 3)
    car = np.ones((1, 1, 1), bool)
    color = np.full((1, 1, 1, 3), EGO_COLOR, np.uint8)
    view.add(car, color, (-EGO_REAR, -EGO_WIDTH / 2, 0.0), (EGO_LENGTH, EGO_WIDTH, EGO_HEIGHT))
    return view.picture()


def draw_occupancy_from_above(occupancy: Occupancy, size: int) -> np.ndarray:
    """Return a BGR picture [size, size, 3] from above, +x up, of the top-most occupied voxel of each column.

    Columns that are free show the background. The picture extends equally far from base_link in all directions: as far
    as the grid does in the direction of its greatest extent.
    """
    grid = occupancy.grid
    ends = [(o, o + grid.resolution * n) for o, n in zip(grid.origin[:2], grid.shape[:2], strict=True)]
    view = BirdsEye(size, reach=max(abs(end) for pair in ends for end in pair))
    middles = (size / 2 - np.arange(size)) / view.scale  # m, pixel centres: x of the rows, y of the columns
    i, j = (np.floor((middles - o) / grid.resolution).astype(int) for o in grid.origin[:2])
    rows, columns = ((at >= 0) & (at < n) for at, n in zip((i, j), grid.shape[:2], strict=True))
    colors, filled = _top_colors(occupancy)
    inside = np.ix_(rows, columns)
    cells = np.ix_(i[rows], j[columns])
    view.canvas[inside] = np.where(filled[cells][..., None], colors[cells], view.canvas[inside])
    view.draw_rings()
    view.draw_ego()
    return view.canvas


def voxel_colors(occupancy: Occupancy) -> np.ndarray:
    """Return the colours [X, Y, Z, 3] uint8 BGR: one per class, and one per object if the occupancy has instances."""
    table = np.array(bgr_colors(occupancy.class_names), np.uint8)
    colors = table[occupancy.semantics]
    if occupancy.instances is not None:
        objects = _objects(occupancy)
        colors[objects] = _instance_colors(occupancy.instances[objects])
    return colors


def _objects(occupancy: Occupancy) -> np.ndarray:
    """Return the voxels of countable things that have an instance number, [X, Y, Z] bool."""
    assert occupancy.instances is not None
    countable = np.array([name in THINGS for name in occupancy.class_names])
    return countable[occupancy.semantics] & (occupancy.instances > 0)


def _instance_colors(instances: np.ndarray) -> np.ndarray:
    """Return a bright colour [n, 3] BGR for each instance number [n]; consecutive numbers get distinct colours."""
    hues = np.round(instances * GOLDEN_RATIO % 1.0 * 180).astype(np.uint8) % 180
    hsv = np.stack([hues, np.full_like(hues, 190), np.full_like(hues, 250)], axis=1)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2BGR)[0]


def _top_colors(occupancy: Occupancy) -> tuple[np.ndarray, np.ndarray]:
    """Return the colour [X, Y, 3] of the top-most occupied voxel of each column, and whether there is one [X, Y]."""
    occupied = occupancy.occupied
    top = occupied.shape[2] - 1 - occupied[:, :, ::-1].argmax(axis=2)
    colors = np.take_along_axis(voxel_colors(occupancy), top[:, :, None, None], axis=2)
    return colors[:, :, 0], occupied.any(axis=2)


def _draw_panel(occupancy: Occupancy, title: str) -> np.ndarray:
    """Return one occupancy's picture, PANEL pixels wide."""
    perspective = draw_perspective(occupancy, (PANEL, PERSPECTIVE_HEIGHT))
    put_text(perspective, title, (12, 28), TEXT, 0.7)
    below = [draw_occupancy_from_above(occupancy, BIRDS_EYE), _draw_legend(occupancy, (PANEL - BIRDS_EYE, BIRDS_EYE))]
    return np.vstack([perspective, np.hstack(below)])


def _draw_legend(occupancy: Occupancy, size: tuple[int, int]) -> np.ndarray:
    """Return the list of classes with their numbers of voxels and, if the occupancy has instances, of objects."""
    width, height = size
    legend = np.full((height, width, 3), BACKGROUND, np.uint8)
    voxels = np.bincount(occupancy.semantics.ravel(), minlength=len(occupancy.class_names))
    colors = bgr_colors(occupancy.class_names)
    y = LINE
    for k, name in enumerate(occupancy.class_names):
        if k == occupancy.free:
            continue
        text = f"{name} {voxels[k]}"
        if occupancy.instances is not None and name in THINGS:
            mine = occupancy.instances[(occupancy.semantics == k) & (occupancy.instances > 0)]
            text += f", objects: {len(np.unique(mine))}"
        cv2.rectangle(legend, (12, y - 10), (24, y + 2), colors[k], -1)
        put_text(legend, text, (32, y), TEXT, 0.45)
        y += LINE
    put_text(
        legend, f"voxels: {occupancy.occupied.sum()} of {occupancy.semantics.size} occupied", (12, y + 8), TEXT, 0.45
    )
    if occupancy.instances is not None:
        put_text(legend, "things have one colour an object", (12, y + 8 + LINE), TEXT, 0.45)
    return legend
