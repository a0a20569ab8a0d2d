"""Building blocks of all pictures: camera tiles, bird's-eye view, dashed lines, text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from bev_perception.classes import class_colors
from bev_perception.geometry import box_corners
from bev_perception.sensing.images import ImageError, decode_image
from bev_perception.sensing.lens import undistortion_map
from bev_perception.types import Boxes3D, Frame, View

Color = tuple[int, int, int]  # BGR

CAPTION = 40  # pixels, height of the strip at the bottom
REACH = 50.0  # m, shown by the bird's-eye view in each direction
EGO_LENGTH, EGO_WIDTH, EGO_HEIGHT, EGO_REAR = 4.1, 1.75, 1.55, 1.0  # m; base_link: rear axle, EGO_REAR from the tail
BACKGROUND, GRID, TEXT = (24, 22, 20), (75, 72, 70), (230, 230, 230)
# layout of cameras with the default names; other rigs are laid out in the configured order
SURROUND = (
    ("cam_front_left", "cam_front", "cam_front_right"),
    ("cam_back_left", "cam_back", "cam_back_right"),
)
FRACTION_BITS = 4  # fraction bits of the coordinates that OpenCV draws with
DASH = 6.0  # pixels, length of a dash and of the gap after it


@dataclass(frozen=True)
class Tile:
    """One camera's place in a picture.

    name: of the camera
    picture: [h, w, 3] BGR, to be drawn on
    view: the camera's image, calibration and pose
    source2tile: [3, 3] from pixels of the camera's image without its lens distortion to pixels of the tile
    """

    name: str
    picture: np.ndarray
    view: View
    source2tile: np.ndarray


def decode_views(frame: Frame) -> dict[str, np.ndarray]:
    """Return the images [H, W, 3] BGR by camera, of all cameras whose image can be decoded."""
    images = {}
    for view in frame.views:
        if view is not None:
            try:
                images[view.image.camera] = decode_image(view.image)
            except ImageError:
                continue  # the pipeline has counted it and logged the reason, which its tile shows, too
    return images


def draw_cameras(
    frame: Frame,
    images: Mapping[str, np.ndarray],
    tile_size: tuple[int, int],
    rows: int,
    draw: Callable[[Tile], None] | None = None,
) -> np.ndarray:
    """Return a picture of the frame's cameras, one tile per camera.

    images: camera -> its decoded image [H, W, 3] BGR uint8, as it was taken (lens distortion is removed here)
    tile_size: width, height, pixels
    rows: number of rows of tiles
    draw: called with every tile that shows an image; None draws nothing more
    """
    views = dict(zip(frame.cameras, frame.views, strict=True))

    def picture_of(name: str) -> np.ndarray:
        picture, tile = _make_tile(name, views.get(name), images.get(name), frame.missing, tile_size)
        if tile is not None and draw is not None:
            draw(tile)
        put_text(picture, name, (8, 20), TEXT, 0.5)
        return picture

    return np.vstack([np.hstack([picture_of(name) for name in row]) for row in rows_of_cameras(frame.cameras, rows)])


def rows_of_cameras(cameras: tuple[str, ...], rows: int) -> list[list[str]]:
    """Return the cameras' names row by row, all rows equally long; "" is an empty place."""
    surround = [name for row in SURROUND for name in row]
    names = surround if set(cameras) == set(surround) else list(cameras)
    columns = max(1, math.ceil(len(names) / rows))
    names = names + [""] * (rows * columns - len(names))
    return [names[k : k + columns] for k in range(0, len(names), columns)]


def _make_tile(
    name: str, view: View | None, image: np.ndarray | None, missing: Mapping[str, str], size: tuple[int, int]
) -> tuple[np.ndarray, Tile | None]:
    """Return a camera's picture and its tile to draw on; the tile is None if there is no image to show."""
    width, height = size
    picture = np.full((height, width, 3), BACKGROUND, np.uint8)
    if view is None or image is None:
        reason = missing.get(name, "no image") if name else ""
        put_text(picture, reason[:85], (12, height // 2), TEXT, 0.42)
        return picture, None
    if image.shape[:2] != (view.calibration.height, view.calibration.width):
        put_text(picture, "the image has not the size of its calibration", (12, height // 2), TEXT, 0.42)
        return picture, None
    return picture, Tile(name, picture, view, place_image(picture, image, view))


def place_image(picture: np.ndarray, image: np.ndarray, view: View) -> np.ndarray:
    """Put the undistorted image into the middle of the picture; return source2tile, see Tile."""
    calibration = view.calibration
    tile_height, tile_width = picture.shape[:2]
    scale = min(tile_width / calibration.width, tile_height / calibration.height)
    width, height = round(calibration.width * scale), round(calibration.height * scale)
    x, y = (tile_width - width) // 2, (tile_height - height) // 2
    half = (scale - 1) / 2  # the middle of a pixel has integer coordinates
    source2small = np.array([[scale, 0, half], [0, scale, half], [0, 0, 1.0]])
    if calibration.distortion:
        maps = undistortion_map(
            calibration.intrinsics,
            calibration.distortion_model,
            calibration.distortion,
            (calibration.height, calibration.width),
            source2small,
            (width, height),
        )
        small = cv2.remap(image, *maps, cv2.INTER_LINEAR)
    else:
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    picture[y : y + height, x : x + width] = small
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]]) @ source2small


class BirdsEye:
    """A bird's-eye view of the surroundings of base_link, +x up and +y left, to be drawn on.

    canvas: [size, size, 3] BGR
    size: width and height, pixels
    reach: distance shown in each direction from base_link, m
    scale: pixels per metre
    """

    def __init__(self, size: int, reach: float = REACH) -> None:
        """Start with an empty view; size and reach as in the class."""
        self.canvas = np.full((size, size, 3), BACKGROUND, np.uint8)
        self.size, self.reach = size, reach
        self.scale = (size / 2 - 12) / reach

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Return points as pixels [n, 2], those far outside clipped to coordinates that OpenCV can handle.

        points: [n, 2 or more] in base_link, m
        """
        at = self.size / 2 - self.scale * points[:, 1::-1]
        return np.clip(at, -4 * self.size, 5 * self.size)

    def draw_rings(self) -> None:
        """Draw a circle every 10 m, and a tick every 30 degrees."""
        middle = (self.size // 2, self.size // 2)
        for metres in range(10, int(self.reach) + 1, 10):
            radius = round(metres * self.scale)
            cv2.circle(self.canvas, middle, radius, GRID, 1, cv2.LINE_AA)
            put_text(self.canvas, f"{metres} m", (middle[0] + 3, middle[1] - radius + 12), GRID, 0.38)
        for degrees in range(0, 360, 30):
            heading = np.array([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]])
            start, end = fixed(self.pixels(np.r_[heading * (self.reach - 2), heading * self.reach])).tolist()
            cv2.line(self.canvas, start, end, TEXT, 1, cv2.LINE_AA, FRACTION_BITS)

    def draw_ego(self) -> None:
        """Draw the outline and the bonnet of the ego car."""
        rear, front, side = -EGO_REAR, EGO_LENGTH - EGO_REAR, EGO_WIDTH / 2
        self.outline(np.array([[front, side], [rear, side], [rear, -side], [front, -side]]), TEXT)
        bonnet = fixed(self.pixels(np.array([[0.5, side], [front, 0], [0.5, -side]])))
        cv2.polylines(self.canvas, [bonnet], False, TEXT, 1, cv2.LINE_AA, FRACTION_BITS)

    def draw_boxes(self, boxes: Boxes3D, colors: list[Color], dashed: bool = False) -> None:
        """Draw the ground outline of boxes, with a thick line from the middle to the front.

        boxes: in base_link
        colors: one per box
        dashed: whether to draw dashed outlines and a thin line to the front
        """
        corners = box_corners(boxes.centers, boxes.sizes, boxes.yaws)[:, :4, :2]  # [n, 4, 2]
        for i, color in enumerate(colors):
            self.outline(corners[i], color, dashed)
            nose = corners[i, [0, 3]].mean(0)
            start, end = fixed(self.pixels(np.stack([boxes.centers[i, :2], nose]))).tolist()
            cv2.line(self.canvas, start, end, color, 1 if dashed else 2, cv2.LINE_AA, FRACTION_BITS)

    def outline(self, corners: np.ndarray, color: Color, dashed: bool = False) -> None:
        """Draw a polygon with corners [n, 2] in base_link, m."""
        at = fixed(self.pixels(corners))
        if not dashed:
            cv2.polylines(self.canvas, [at], True, color, 1, cv2.LINE_AA, FRACTION_BITS)
            return
        for start, end in zip(at, np.roll(at, -1, axis=0), strict=True):
            dashed_line(self.canvas, start, end, color)


def bgr_colors(class_names: Sequence[str]) -> list[Color]:
    """Return the classes' colours in the order of OpenCV: blue, green, red."""
    return [(b, g, r) for r, g, b in class_colors(class_names).tolist()]


def fixed(pixels: np.ndarray) -> np.ndarray:
    """Return pixels [...] as fixed-point integers with FRACTION_BITS fraction bits."""
    return np.round(pixels * (1 << FRACTION_BITS)).astype(np.int32)


def dashed_line(picture: np.ndarray, start: np.ndarray, end: np.ndarray, color: Color) -> None:
    """Draw a thin dashed line that begins and ends with a dash.

    start, end: [2] results of `fixed`
    """
    pixels = float(np.hypot(*(end - start))) / (1 << FRACTION_BITS)
    dashes = max(1, round((pixels / DASH + 1) / 2))
    along = np.linspace(0.0, 1.0, 2 * dashes)[:, None]
    ends = np.round(start + along * (end - start)).astype(np.int32).reshape(dashes, 2, 2)
    cv2.polylines(picture, list(ends), False, color, 1, cv2.LINE_AA, FRACTION_BITS)


def draw_dots(picture: np.ndarray, pixels: np.ndarray, radius: float, color: Color, filled: bool = True) -> None:
    """Draw dots or rings.

    pixels: [n, 2] their middles
    radius: pixels
    filled: True for dots, False for rings
    """
    size = round(radius * (1 << FRACTION_BITS))
    for at in fixed(pixels).tolist():
        cv2.circle(picture, at, size, color, -1 if filled else 1, cv2.LINE_AA, FRACTION_BITS)


def draw_caption(width: int, note: str, state: str) -> np.ndarray:
    """Return a strip [CAPTION, width, 3] with `note` on the left and `state` on the right."""
    strip = np.full((CAPTION, width, 3), BACKGROUND, np.uint8)
    put_text(strip, note, (12, 26), TEXT, 0.6)
    (state_width, _), _ = cv2.getTextSize(state, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    strip[:, max(0, width - state_width - 24) :] = BACKGROUND  # cut off a long note
    put_text(strip, state, (width - state_width - 12, 26), TEXT, 0.5)
    return strip


def put_text(picture: np.ndarray, text: str, at: tuple[int, int], color: Color, size: float) -> None:
    """Write a line of text.

    at: left end of its base line, pixels
    size: scale of OpenCV's font
    """
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)
