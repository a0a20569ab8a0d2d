"""Draw images of the ring road: sky and hills, a painted ground, shaded boxes; with numpy and OpenCV only."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from bev_perception.data.drive import CameraRig
from bev_perception.geometry import box_corners, invert_transform, transform_points, yaw_from_rotation
from bev_perception.types import Boxes3D

ROAD_RADIUS = 100.0  # m, of the ring's centre line; the world's origin is the ring's middle, z = 0 the ground
EXTENT = 140.0  # m, half the side of the painted ground
TEXEL = 0.1  # m
LEVELS = 3  # copies of the ground, each with a quarter of the previous one's resolution
GRASS = (72, 112, 104)
SHADOW = (48, 46, 46)
NEAR = 0.2  # m, the clipping plane before a camera
FAR = 90.0  # m, boxes further away are not drawn
HORIZON = -0.009  # sine of the elevation where the hills meet the ground, about 170 m away

_SUN = np.array([0.35, -0.5, 0.79])  # unit vector to the sun, world frame
# of box_corners; the sides begin with two bottom corners and end with the top ones above them
_TOP, _FRONT, _BACK, _LEFT, _RIGHT = (4, 5, 6, 7), (0, 3, 7, 4), (2, 1, 5, 6), (1, 0, 4, 5), (3, 2, 6, 7)
_Patch = tuple[tuple[float, float, float, float], tuple[int, int, int]]  # left, right, bottom, top in a side; BGR
_WINDOW: _Patch = ((0.05, 0.95, 0.62, 0.92), (70, 58, 50))
_HEADLIGHTS: list[_Patch] = [((left, left + 0.2, 0.35, 0.47), (225, 240, 240)) for left in (0.04, 0.76)]
_TAILLIGHTS: list[_Patch] = [((left, left + 0.2, 0.35, 0.47), (40, 30, 200)) for left in (0.04, 0.76)]
_FACES: tuple[tuple[tuple[int, ...], list[_Patch]], ...] = (
    (_TOP, []),
    (_FRONT, [_WINDOW, *_HEADLIGHTS]),
    (_BACK, [_WINDOW, *_TAILLIGHTS]),
    (_LEFT, [_WINDOW]),
    (_RIGHT, [_WINDOW]),
)


@dataclass(frozen=True)
class Scenery:
    """The static part of the world.

    ground: LEVELS images [T, T, 3] BGR, x along columns and y along rows, from -EXTENT to EXTENT
    hills: [5], rad, phases of the waves that make up the skyline
    """

    ground: list[np.ndarray]
    hills: np.ndarray


def paint_ground(rng: np.random.Generator) -> list[np.ndarray]:
    """Return the ground of a Scenery: a ring road in grass, with lane markings, crossings, kerbs and pavements."""
    size = round(2 * EXTENT / TEXEL)
    axis = ((np.arange(size) + 0.5) * TEXEL - EXTENT).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    lateral = np.hypot(x, y) - ROAD_RADIUS  # m, outwards from the centre line
    along = np.arctan2(y, x) * ROAD_RADIUS  # m
    off_center = np.abs(lateral)
    ground = np.empty((size, size, 3), np.uint8)
    ground[:] = GRASS
    ground[off_center < 10] = (150, 152, 155)  # pavement
    ground[(off_center < 10) & ((along % 2 < 0.12) | (lateral % 2 < 0.12))] = (128, 130, 132)
    ground[off_center < 6.2] = (105, 105, 108)  # kerb
    ground[off_center < 6.0] = (84, 82, 82)
    ground[(off_center < 0.09) & (along % 6 < 3)] = (225, 230, 230)
    ground[np.abs(off_center - 3.6) < 0.08] = (210, 215, 215)
    crossing = (along % (ROAD_RADIUS * np.pi / 5) < 3.5) & (off_center < 3.4)
    ground[crossing & (lateral % 1.0 < 0.5)] = (220, 225, 225)
    noise = np.zeros((size, size), np.float32)
    for cells, strength in ((size, 7.0), (size // 6, 8.0), (size // 60, 12.0)):
        noise += cv2.resize(rng.normal(0, strength, (cells, cells)).astype(np.float32), (size, size))
    levels = [cv2.add(ground, cv2.merge([noise] * 3), dtype=cv2.CV_8U)]
    while len(levels) < LEVELS:
        levels.append(cv2.resize(levels[-1], None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA))
    return levels


class Painter:
    """Draws the images of one camera."""

    def __init__(self, rig: CameraRig) -> None:
        """Compute what does not depend on time: the sky, and where the ray of each pixel hits the ground."""
        self._sensor2ego, self._intrinsics = rig.sensor2ego, rig.calibration.intrinsics
        width, height = rig.calibration.width, rig.calibration.height
        u, v = np.meshgrid(np.arange(width), np.arange(height))
        pixels = np.stack([u, v, np.ones_like(u)], -1)  # [h, w, 3]
        rays = pixels @ (rig.sensor2ego[:3, :3] @ np.linalg.inv(self._intrinsics)).T  # ego frame
        rays /= np.linalg.norm(rays, axis=2, keepdims=True)
        zenith = np.clip(rays[..., 2:] * 2.5, 0, 1)
        self._sky = (np.array([235, 225, 210]) * (1 - zenith) + np.array([205, 150, 95]) * zenith).astype(np.uint8)

        self._horizon = int(np.argmax((rays[..., 2] < HORIZON).any(1)))  # first row with ground
        down = rays[self._horizon :]
        distance = rig.sensor2ego[2, 3] / np.maximum(-down[..., 2], -HORIZON / 2)  # [h', w] m along the ray
        hits = rig.sensor2ego[:2, 3] + down[..., :2] * distance[..., None]  # [h', w, 2] ego frame, z = 0
        self._hits = hits.astype(np.float32)
        # the sharpest copy of the ground whose pixels a row's pixels do not skip
        footprint = np.median(distance, 1) / self._intrinsics[1, 1] / TEXEL  # texels, across the ray
        self._levels = np.clip(np.log2(footprint * 4) / 2, 0, LEVELS - 1).astype(int)  # [h']

        azimuths = np.unwrap(np.arctan2(rays[height // 2, :, 1], rays[height // 2, :, 0]))
        self._azimuths = np.linspace(azimuths[0] + 0.1, azimuths[-1] - 0.1, 80)  # a little wider than the view

    def paint(self, scenery: Scenery, ego2global: np.ndarray, boxes: Boxes3D, colors: np.ndarray) -> np.ndarray:
        """Return the image [h, w, 3] BGR.

        scenery: the static part of the world
        ego2global: [4, 4]
        boxes: in the global frame, on the ground
        colors: [n, 3] BGR, of the boxes
        """
        image = self._sky.copy()
        self._paint_ground(image, scenery, ego2global)
        self._paint_hills(image, scenery, ego2global)
        self._paint_boxes(image, boxes, colors, ego2global)
        return image

    def _paint_ground(self, image: np.ndarray, scenery: Scenery, ego2global: np.ndarray) -> None:
        for level, texture in enumerate(scenery.ground):
            rows = np.flatnonzero(self._levels == level)
            if not rows.size:
                continue
            first, end = int(rows[0]), int(rows[-1]) + 1
            ego2texture = np.c_[ego2global[:2, :2], ego2global[:2, 3] + EXTENT] / (TEXEL * 4**level)
            ego2texture[:, 2] -= 0.5  # the middle of a pixel has integer coordinates
            at = cv2.transform(self._hits[first:end], ego2texture)  # [h, w, 2]
            out = image[self._horizon + first : self._horizon + end]
            cv2.remap(texture, at, None, cv2.INTER_LINEAR, out, cv2.BORDER_CONSTANT, GRASS)  # type: ignore[call-overload]

    def _paint_hills(self, image: np.ndarray, scenery: Scenery, ego2global: np.ndarray) -> None:
        """Draw two ranges of hills, infinitely far away."""
        world = self._azimuths + yaw_from_rotation(ego2global)
        for height, shift, color in ((0.055, 0, (150, 140, 120)), (0.03, 2, (95, 110, 95))):
            waves = [np.sin((3 + 2 * k) * world + scenery.hills[k] + shift) / (2.5 + k) for k in range(5)]
            slope = np.r_[np.maximum(height * (1 + sum(waves)), 0.0), np.full(len(world), 1.5 * HORIZON)]
            azimuth = np.r_[self._azimuths, self._azimuths[::-1]]
            rays = np.stack([np.cos(azimuth), np.sin(azimuth), slope], 1) @ self._sensor2ego[:3, :3]
            self._fill(image, rays / rays[:, 2:], color)

    def _paint_boxes(self, image: np.ndarray, boxes: Boxes3D, colors: np.ndarray, ego2global: np.ndarray) -> None:
        """Draw the boxes from far to near, each with the faces that are turned to the camera."""
        sensor2global = ego2global @ self._sensor2ego
        global2sensor, eye = invert_transform(sensor2global), sensor2global[:3, 3]
        distance = np.linalg.norm(boxes.centers - eye, axis=1)
        depth = transform_points(global2sensor, boxes.centers)[:, 2]
        seen = np.flatnonzero((distance < FAR) & (depth > -boxes.sizes[:, 0]))
        corners = box_corners(boxes.centers, boxes.sizes, boxes.yaws)  # [n, 8, 3]
        for i in seen:  # all shadows lie under all boxes
            middle = corners[i, :4].mean(0)
            self._fill(image, transform_points(global2sensor, middle + 1.12 * (corners[i, :4] - middle)), SHADOW)
        for i in seen[np.argsort(-distance[seen])]:
            vehicle = boxes.class_names[boxes.labels[i]] != "pedestrian"
            for face, parts in _FACES:
                quad = corners[i, face]  # [4, 3]
                normal = quad.mean(0) - boxes.centers[i]
                if normal @ (eye - quad.mean(0)) <= 0:
                    continue
                shade = 0.62 + 0.38 * float(normal @ _SUN) / np.linalg.norm(normal)
                self._fill(image, transform_points(global2sensor, quad), tuple(map(float, colors[i] * shade)))
                for place, color in parts if vehicle else ():
                    self._fill(image, transform_points(global2sensor, _part(quad, *place)), color)

    def _fill(self, image: np.ndarray, points: np.ndarray, color: tuple[float, ...]) -> None:
        """Fill the part of a flat polygon [n, 3] in the camera frame that lies beyond the near plane."""
        points = _clip_near(points)
        if len(points) < 3:
            return
        pixels = points @ self._intrinsics.T
        pixels = np.clip(pixels[:, :2] / pixels[:, 2:], -30_000, 30_000)
        cv2.fillPoly(image, [np.round(pixels * 16).astype(np.int32)], color, cv2.LINE_AA, 4)  # 4 bits of fraction


def _part(quad: np.ndarray, left: float, right: float, bottom: float, top: float) -> np.ndarray:
    """Return a rectangle [4, 3] within an upright face [4, 3]."""
    u, v = np.array([left, right, right, left])[:, None], np.array([bottom, bottom, top, top])[:, None]
    return quad[0] + u * (quad[1] - quad[0]) + v * (quad[3] - quad[0])


def _clip_near(points: np.ndarray) -> np.ndarray:
    """Return the part of a polygon beyond the near plane (Sutherland and Hodgman, CACM 1974, for one plane)."""
    inside = points[:, 2] >= NEAR
    if inside.all():
        return points
    kept = []
    for i in range(len(points)):
        a, b = points[i - 1], points[i]
        if inside[i - 1] != inside[i]:
            kept.append(a + (NEAR - a[2]) / (b[2] - a[2]) * (b - a))
        if inside[i]:
            kept.append(b)
    return np.array(kept).reshape(-1, 3)
