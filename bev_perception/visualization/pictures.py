"""Pictures of a frame and its boxes: every camera with the boxes drawn in, beside a view from above; and videos."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np

from bev_perception.geometry import box_corners, invert_transform, transform_points
from bev_perception.lens import undistortion_map
from bev_perception.types import Boxes3D, Frame, View

TILE_WIDTH, TILE_HEIGHT = 640, 360  # pixels, of one camera's picture
CAPTION = 40  # pixels, height of the strip below
REACH = 50.0  # m, shown from above in each direction
NEAR = 0.1  # m, nothing nearer to a camera is drawn
MIN_SPEED = 0.5  # m/s, slower boxes get no arrow
EGO_LENGTH, EGO_WIDTH, EGO_REAR = 4.1, 1.75, 1.0  # m, a car with base_link at the rear axle; EGO_REAR behind it
#: BGR, one a class in nuScenes' order, then from the start again
COLORS = (
    (255, 150, 60),
    (70, 200, 255),
    (60, 120, 200),
    (230, 80, 230),
    (160, 160, 255),
    (170, 170, 170),
    (80, 80, 255),
    (120, 255, 120),
    (60, 220, 60),
    (0, 140, 255),
)
BACKGROUND, GRID, TEXT = (24, 22, 20), (75, 72, 70), (230, 230, 230)
# of the cameras' default names; other rigs are laid out in the configured order
SURROUND = (
    ("cam_front_left", "cam_front", "cam_front_right"),
    ("cam_back_left", "cam_back", "cam_back_right"),
)
_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
_FRONT_CROSS = ((0, 7), (3, 4))  # diagonals of the front face, see geometry.box_corners


def draw_frame(frame: Frame, images: Mapping[str, np.ndarray], boxes: Boxes3D, note: str = "") -> np.ndarray:
    """Return a BGR picture of the frame: two rows of cameras, the view from above, and a strip with `note`.

    images: camera -> its decoded image [H, W, 3] BGR uint8, as it was taken (lens distortion is removed here).
    boxes: in base_link at the frame's stamp; in each camera they stand where its own stamp's ego pose puts them.
    """
    corners = box_corners(boxes.centers, boxes.sizes, boxes.yaws).reshape(-1, 3)  # [n * 8, 3]
    corners = transform_points(frame.ego2global, corners).reshape(-1, 8, 3)
    views = dict(zip(frame.cameras, frame.views, strict=True))
    rows = []
    for row in _layout(frame.cameras):
        tiles = [_draw_camera(name, views.get(name), images, frame.missing, corners, boxes) for name in row]
        rows.append(np.hstack(tiles))
    picture = np.hstack([np.vstack(rows), draw_birds_eye(boxes, 2 * TILE_HEIGHT)])
    state = f"t = {frame.stamp / 1e9:.3f} s   {len(boxes)} boxes"
    return np.vstack([picture, _caption(picture.shape[1], note, state)])


def draw_birds_eye(boxes: Boxes3D, size: int) -> np.ndarray:
    """Return a BGR picture [size, size, 3] of boxes in base_link from above, +x up, REACH m each way."""
    canvas = np.full((size, size, 3), BACKGROUND, np.uint8)
    scale = (size / 2 - 12) / REACH

    def pixels(points: np.ndarray) -> np.ndarray:
        """Return points [n, 2 or more] (m, base_link) as pixels [n, 2] with 4 bits of fraction."""
        at = size / 2 - scale * points[:, 1::-1]
        return np.round(np.clip(at, -4 * size, 5 * size) * 16).astype(np.int32)

    middle = (size // 2, size // 2)
    for metres in range(10, int(REACH) + 1, 10):
        cv2.circle(canvas, middle, round(metres * scale), GRID, 1, cv2.LINE_AA)
        _text(canvas, f"{metres} m", (size // 2 + 3, size // 2 - round(metres * scale) + 12), GRID, 0.38)
    for degrees in range(0, 360, 30):
        heading = np.array([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]])
        start, end = pixels(np.r_[heading * (REACH - 2), heading * REACH]).tolist()
        cv2.line(canvas, start, end, TEXT, 1, cv2.LINE_AA, 4)

    rear, front, side = -EGO_REAR, EGO_LENGTH - EGO_REAR, EGO_WIDTH / 2
    ego = np.array([[front, side], [rear, side], [rear, -side], [front, -side]])
    cv2.polylines(canvas, [pixels(ego)], True, TEXT, 1, cv2.LINE_AA, 4)
    cv2.polylines(canvas, [pixels(np.array([[0.5, side], [front, 0], [0.5, -side]]))], False, TEXT, 1, cv2.LINE_AA, 4)

    corners = box_corners(boxes.centers, boxes.sizes, boxes.yaws)[:, :4, :2]  # [n, 4, 2]
    for i in range(len(boxes)):
        color = _color(boxes, i)
        center = boxes.centers[i, :2]
        cv2.polylines(canvas, [pixels(corners[i])], True, color, 1, cv2.LINE_AA, 4)
        nose = corners[i, [0, 3]].mean(0)
        start, end = pixels(np.stack([center, nose])).tolist()
        cv2.line(canvas, start, end, color, 2, cv2.LINE_AA, 4)
        if np.hypot(*boxes.velocities[i]) >= MIN_SPEED:  # the way of one second
            tail, tip = pixels(np.stack([nose, nose + boxes.velocities[i]])) // 16
            cv2.arrowedLine(canvas, tail, tip, TEXT, 1, cv2.LINE_AA, tipLength=0.2)
    _legend(canvas, boxes)
    return canvas


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a BGR picture as PNG; the file appears when it is complete."""
    encoded = cv2.imencode(".png", picture)[1]
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(encoded.tobytes())
    partial.replace(path)


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float) -> int:
    """Write BGR pictures of one size as an mp4 video (MPEG-4 part 2, what every OpenCV can write); return their number.

    Raises OSError when the file cannot be written, ValueError for no pictures or pictures of different sizes.
    """
    path = Path(path)
    writer, size, count = None, (0, 0), 0
    try:
        for picture in frames:
            if writer is None:
                size = (picture.shape[1], picture.shape[0])
                writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
                if not writer.isOpened():
                    raise OSError(f"OpenCV cannot write {path}; name an .mp4 file in a directory that exists")
            if (picture.shape[1], picture.shape[0]) != size:
                raise ValueError(f"picture {count} of {path} is {picture.shape[1::-1]}, the first was {size}")
            writer.write(picture)
            count += 1
    except BaseException:
        if writer is not None:
            writer.release()
            path.unlink(missing_ok=True)
        raise
    if writer is None:
        raise ValueError(f"there are no pictures for {path}")
    writer.release()
    return count


def _layout(cameras: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return two rows of equally many names; "" is an empty place."""
    if set(cameras) == {name for row in SURROUND for name in row}:
        return list(SURROUND)
    columns = max(1, math.ceil(len(cameras) / 2))
    padded = (*cameras, *[""] * (2 * columns - len(cameras)))
    return [padded[:columns], padded[columns:]]


def _draw_camera(
    name: str,
    view: View | None,
    images: Mapping[str, np.ndarray],
    missing: Mapping[str, str],
    corners: np.ndarray,
    boxes: Boxes3D,
) -> np.ndarray:
    """Return one camera's tile.  corners: [n, 8, 3] of the boxes in the global frame."""
    tile = np.full((TILE_HEIGHT, TILE_WIDTH, 3), BACKGROUND, np.uint8)
    image = images.get(name)
    if view is None or image is None:
        reason = missing.get(name, "no image") if name else ""
        _text(tile, reason[:85], (12, TILE_HEIGHT // 2), TEXT, 0.42)
    elif image.shape[:2] != (view.calibration.height, view.calibration.width):
        _text(tile, "the image has not the size of its calibration", (12, TILE_HEIGHT // 2), TEXT, 0.42)
    else:
        camera2tile = _place_image(tile, image, view)  # [3, 3]
        global2camera = invert_transform(view.ego2global @ view.sensor2ego)
        local = transform_points(global2camera, corners.reshape(-1, 3)).reshape(-1, 8, 3)
        for i in np.argsort(-local[:, :, 2].mean(1)):  # far boxes first
            _draw_wireframe(tile, local[i], camera2tile, _color(boxes, int(i)))
    _text(tile, name, (8, 20), TEXT, 0.5)
    return tile


def _place_image(tile: np.ndarray, image: np.ndarray, view: View) -> np.ndarray:
    """Put the image, undistorted, into the middle of the tile; return the tile's camera matrix [3, 3]."""
    calibration = view.calibration
    scale = min(TILE_WIDTH / calibration.width, TILE_HEIGHT / calibration.height)
    width, height = round(calibration.width * scale), round(calibration.height * scale)
    x, y = (TILE_WIDTH - width) // 2, (TILE_HEIGHT - height) // 2
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
    tile[y : y + height, x : x + width] = small
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]]) @ source2small @ calibration.intrinsics


def _draw_wireframe(tile: np.ndarray, corners: np.ndarray, camera: np.ndarray, color: tuple[int, int, int]) -> None:
    """Draw a box's edges, corners [8, 3] in the camera's frame, and a cross on its front."""
    for edges, thickness in ((_EDGES, 2), (_FRONT_CROSS, 1)):
        for a, b in edges:
            segment = _clip_near(corners[a], corners[b])
            if segment is None:
                continue
            pixels = segment @ camera.T
            pixels = pixels[:, :2] / pixels[:, 2:]
            reach = 20 * TILE_WIDTH
            start, end = np.round(np.clip(pixels, -reach, reach) * 16).astype(np.int32)
            cv2.line(tile, start, end, color, thickness, cv2.LINE_AA, 4)


def _clip_near(a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """Return the part [2, 3] of the segment a-b beyond the near plane, or None."""
    if a[2] < NEAR and b[2] < NEAR:
        return None
    if a[2] < NEAR:
        a = a + (NEAR - a[2]) / (b[2] - a[2]) * (b - a)
    elif b[2] < NEAR:
        b = b + (NEAR - b[2]) / (a[2] - b[2]) * (a - b)
    return np.stack([a, b])


def _legend(canvas: np.ndarray, boxes: Boxes3D) -> None:
    """List the classes with their colours and numbers of boxes."""
    for k, name in enumerate(boxes.class_names):
        y = canvas.shape[0] - 12 - 17 * (len(boxes.class_names) - 1 - k)
        cv2.rectangle(canvas, (8, y - 9), (18, y + 1), COLORS[k % len(COLORS)], -1)
        _text(canvas, f"{name} {int((boxes.labels == k).sum())}", (24, y), TEXT, 0.4)


def _caption(width: int, note: str, state: str) -> np.ndarray:
    strip = np.full((CAPTION, width, 3), BACKGROUND, np.uint8)
    _text(strip, note, (12, 26), TEXT, 0.6)
    (state_width, _), _ = cv2.getTextSize(state, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    strip[:, width - state_width - 24 :] = BACKGROUND  # a long note ends here
    _text(strip, state, (width - state_width - 12, 26), TEXT, 0.5)
    return strip


def _color(boxes: Boxes3D, i: int) -> tuple[int, int, int]:
    return COLORS[int(boxes.labels[i]) % len(COLORS)]


def _text(canvas: np.ndarray, text: str, at: tuple[int, int], color: tuple[int, int, int], size: float) -> None:
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)
