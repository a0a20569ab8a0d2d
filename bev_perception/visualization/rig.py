"""A picture of each camera with what its calibration claims: ground, horizon, neighbours' views, the vehicle's axes."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np

from bev_perception.rig.calibration import border_rays
from bev_perception.rig.description import Rig, RigCamera
from bev_perception.rig.findings import LEVELS, OK, Finding
from bev_perception.rig.projection import see
from bev_perception.visualization.canvas import BACKGROUND, FRACTION_BITS, GRID, TEXT, Color, fixed, put_text

#: width that pictures are drawn at, pixels
WIDTH = 1000
#: m; spacing and reach of the ground grid, and the distance at which neighbours' views are drawn
SPACING, REACH, FRUSTUM = 5.0, 50.0, 15.0
#: m; length of the vehicle's axes, drawn on the ground in the middle of the view
AXES, AXES_AT = 2.0, 9.0
_GROUND, _HORIZON = (90, 200, 90), (60, 220, 250)
_AXES: tuple[Color, ...] = ((60, 60, 240), (60, 220, 60), (240, 120, 60))  # x red, y green, z blue
_NEIGHBOURS: tuple[Color, ...] = ((240, 180, 60), (200, 90, 220), (60, 160, 250), (220, 220, 90))
_LEVEL_COLORS: dict[str, Color] = dict(zip(LEVELS, ((110, 200, 110), (60, 190, 250), (70, 70, 240)), strict=True))


def draw_rig(rig: Rig, pictures: dict[str, np.ndarray], findings: list[Finding], folder: Path) -> list[Path]:
    """Write <camera>.jpg for each camera of the rig and return the paths.

    rig: with calibrations and poses
    pictures: camera -> [H, W] or [H, W, 3] uint8; a camera without one is drawn on an empty background
    findings: those of the camera that are not OK are written below its picture
    folder: is created if need be
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for camera in rig.cameras:
        drawn = draw_camera(rig, camera, pictures.get(camera.name), findings)
        path = folder / f"{camera.name.replace('/', '_')}.jpg"
        if not cv2.imwrite(str(path), drawn):
            raise OSError(f"{path} cannot be written; is the disk full?")
        written.append(path)
    return written


def draw_camera(rig: Rig, camera: RigCamera, picture: np.ndarray | None, findings: list[Finding]) -> np.ndarray:
    """Return a picture [h, WIDTH, 3] of one camera as it sees the rig's claims, with its findings below."""
    canvas, scale = _background(camera, picture)
    if camera.complete:
        _draw_ground(canvas, scale, rig, camera)
        _draw_horizon(canvas, scale, camera)
        others = [other for other in rig.complete if other.name != camera.name]
        for i, other in enumerate(others):
            _draw_view(canvas, scale, camera, other, _NEIGHBOURS[i % len(_NEIGHBOURS)])
        _draw_axes(canvas, scale, rig, camera)
    put_text(canvas, camera.name, (8, 22), TEXT, 0.6)
    return np.vstack([canvas, _captions(camera, findings)])


def _background(camera: RigCamera, picture: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Return the canvas and its scale: canvas pixels a pixel of the calibration."""
    if picture is None:
        height = 0 if camera.calibration is None else WIDTH * camera.calibration.height // camera.calibration.width
        canvas = np.full((max(height, 60), WIDTH, 3), BACKGROUND, np.uint8)
    else:
        colored = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR) if picture.ndim == 2 else picture
        height = max(1, WIDTH * picture.shape[0] // picture.shape[1])
        canvas = (cv2.resize(colored, (WIDTH, height), interpolation=cv2.INTER_AREA) * 0.75).astype(np.uint8)
    return canvas, WIDTH / camera.calibration.width if camera.calibration is not None else 1.0


def _draw_line(
    canvas: np.ndarray, scale: float, camera: RigCamera, points: np.ndarray, color: Color, width: int
) -> None:
    """Draw a line through points [n, 3] in base_link that lie so close that each step is straight in the picture."""
    assert camera.calibration is not None and camera.sensor2ego is not None
    pixels, seen = see(camera.calibration, camera.sensor2ego, points)
    at = fixed(np.nan_to_num((pixels + 0.5) * scale - 0.5))
    for i in np.flatnonzero(seen[:-1] & seen[1:]):
        cv2.line(canvas, at[i].tolist(), at[i + 1].tolist(), color, width, cv2.LINE_AA, FRACTION_BITS)


def _draw_ground(canvas: np.ndarray, scale: float, rig: Rig, camera: RigCamera) -> None:
    along = np.arange(-REACH, REACH + 0.01, 0.5)
    for offset in np.arange(-REACH, REACH + 0.01, SPACING):
        for axis in (0, 1):
            points = np.full((len(along), 3), -rig.base_height)
            points[:, axis], points[:, 1 - axis] = along, offset
            _draw_line(canvas, scale, camera, points, _GROUND, 1)


def _draw_horizon(canvas: np.ndarray, scale: float, camera: RigCamera) -> None:
    assert camera.sensor2ego is not None
    headings = np.radians(np.arange(0, 360.5, 0.5))
    ring = np.stack([np.cos(headings), np.sin(headings), 0 * headings], 1) * 1e5
    _draw_line(canvas, scale, camera, ring + camera.sensor2ego[:3, 3], _HORIZON, 2)


def _draw_view(canvas: np.ndarray, scale: float, camera: RigCamera, other: RigCamera, color: Color) -> None:
    """Draw the border of another camera's picture, FRUSTUM m away from that camera, with its name."""
    assert other.calibration is not None and other.sensor2ego is not None
    rays = border_rays(other.calibration)
    rays = np.concatenate([rays, rays[:1]])
    corners = rays @ other.sensor2ego[:3, :3].T * FRUSTUM + other.sensor2ego[:3, 3]
    dense = np.concatenate([np.linspace(a, b, 4, endpoint=False) for a, b in itertools.pairwise(corners)])
    _draw_line(canvas, scale, camera, dense, color, 2)
    assert camera.calibration is not None and camera.sensor2ego is not None
    pixels, seen = see(camera.calibration, camera.sensor2ego, dense)
    if seen.any():
        x, y = pixels[seen][np.argmin(pixels[seen][:, 1])] * scale
        width = cv2.getTextSize(other.name, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0]
        at = (int(np.clip(x + 6, 4, canvas.shape[1] - width - 4)), int(np.clip(y + 40, 40, canvas.shape[0] - 6)))
        put_text(canvas, other.name, at, color, 0.45)


def _draw_axes(canvas: np.ndarray, scale: float, rig: Rig, camera: RigCamera) -> None:
    """Draw base_link's axes, moved to the ground ahead of the camera."""
    assert camera.sensor2ego is not None
    ahead = camera.sensor2ego[:2, 2]
    length = float(np.linalg.norm(ahead))
    if length < 0.2:  # it looks up or down
        return
    origin = np.array([*(camera.sensor2ego[:2, 3] + ahead / length * AXES_AT), -rig.base_height])
    for axis, (name, color) in enumerate(zip("xyz", _AXES, strict=True)):
        points = origin + np.linspace(0, AXES, 24)[:, None] * np.eye(3)[axis]
        _draw_line(canvas, scale, camera, points, color, 3)
        assert camera.calibration is not None
        pixels, seen = see(camera.calibration, camera.sensor2ego, points[-1:])
        if seen[0]:
            x, y = (pixels[0] * scale).round().astype(int).tolist()
            put_text(canvas, name, (x + 4, y - 4), color, 0.55)


def _captions(camera: RigCamera, findings: list[Finding]) -> np.ndarray:
    about = [f for f in findings if camera.name in f.about.split(" + ") and f.level != OK]
    lines = [(f"{f.level} {f.check}: {f.figure}", _LEVEL_COLORS[f.level]) for f in about]
    lines = lines or [("all checks of this camera are OK", _LEVEL_COLORS[OK])]
    strip = np.full((10 + 22 * len(lines), WIDTH, 3), BACKGROUND, np.uint8)
    cv2.line(strip, (0, 0), (WIDTH, 0), GRID, 1)
    for i, (text, color) in enumerate(lines):
        put_text(strip, text[:125], (8, 22 + 22 * i), color, 0.45)
    return strip
