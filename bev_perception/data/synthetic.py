"""A small synthetic drive on a ring road with traffic, seen by the six cameras of nuScenes.

For demonstrations and tests without data. The truth is known at any time, so everything that is computed from images,
calibrations and poses can be checked.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.data.drive import CAMERAS, NUSCENES_IMAGE_SIZE, CameraRig, Drive, DriveEvent, DriveImage, DrivePose
from bev_perception.data.rendering import Painter, Scenery, paint_ground
from bev_perception.geometry import (
    invert_transform,
    make_transform,
    rotation_from_quaternion,
    rotation_from_yaw,
    transform_points,
    yaw_from_rotation,
)
from bev_perception.types import Boxes3D, Calibration

START = 1_700_000_000_000_000_000  # ns
EGO_RADIUS = 101.75  # m, the right lane of a counter-clockwise drive around the world's origin
EGO_SPEED = 8.0  # m/s
JPEG_QUALITY = 90

# nuScenes (Caesar et al., CVPR 2020), one car's rig and its trigger times, rounded:
# name: (focal length, cx, cy in pixels of 1600x900), translation (m), quaternion wxyz, offset (ms)
_RIG = {
    "cam_front": ((1266, 816, 492), (1.70, 0.02, 1.51), (0.500, -0.503, 0.500, -0.497), 8),
    "cam_front_right": ((1261, 808, 495), (1.55, -0.49, 1.50), (0.206, -0.203, 0.682, -0.671), 16),
    "cam_front_left": ((1273, 827, 480), (1.52, 0.49, 1.51), (0.676, -0.674, 0.212, -0.211), 0),
    "cam_back": ((809, 829, 482), (0.03, 0.00, 1.58), (0.504, -0.497, -0.494, 0.505), 33),
    "cam_back_left": ((1257, 792, 493), (1.04, 0.48, 1.59), (0.692, -0.703, -0.116, 0.112), 43),
    "cam_back_right": ((1260, 807, 501), (1.01, -0.48, 1.56), (0.123, -0.132, -0.700, 0.690), 23),
}
_SIZES = {"car": (4.5, 1.8, 1.65), "truck": (7.0, 2.4, 2.9), "pedestrian": (0.7, 0.65, 1.75)}  # m: l, w, h
# who is on the road: radius (m), direction (1 is ours, counter-clockwise), speed (m/s), number a class
_TRAFFIC: tuple[tuple[float, int, float, dict[str, int]], ...] = (
    (EGO_RADIUS, 1, EGO_SPEED, {"car": 9}),  # our lane, at our speed: nobody runs into anybody
    (98.25, -1, 7.0, {"car": 8, "truck": 3}),
    (105.0, 1, 0.0, {"car": 26, "truck": 5}),  # parked
    (95.0, -1, 0.0, {"car": 24}),
    (108.0, 1, 1.2, {"pedestrian": 16}),
    (92.0, -1, 1.2, {"pedestrian": 16}),
    (107.0, -1, 0.0, {"pedestrian": 8}),
)


class World:
    """The ring road, its traffic and the car on it as functions of time (ns), determined by the seed.

    colors: [n, 3] BGR 0..255, of the boxes in the order of `boxes`
    """

    def __init__(self, seed: int = 0) -> None:
        """Place the traffic."""
        self._seed = seed
        rng = np.random.default_rng(seed)
        lanes = [_place(rng, *lane) for lane in _TRAFFIC]
        self._labels, self._radii, self._angles, self._directions, self._speeds = (
            np.concatenate(columns) for columns in zip(*lanes, strict=True)
        )
        sizes = np.array([_SIZES[NUSCENES_CLASSES[label]] for label in self._labels])
        self._sizes = sizes * rng.uniform(0.92, 1.08, sizes.shape)
        n = len(sizes)
        hsv = np.stack([rng.integers(0, 180, n), rng.integers(20, 210, n), rng.integers(110, 240, n)], 1)
        self.colors = cv2.cvtColor(hsv[None].astype(np.uint8), cv2.COLOR_HSV2BGR)[0]

    def scenery(self) -> Scenery:
        """Draw the static part of the world."""
        rng = np.random.default_rng((self._seed, 1))
        return Scenery(paint_ground(rng), rng.uniform(0, 2 * np.pi, 5))

    def ego2global(self, stamp: int) -> np.ndarray:
        """Return the pose of the car [4, 4]."""
        angle = (stamp - START) / 1e9 * EGO_SPEED / EGO_RADIUS
        position = EGO_RADIUS * np.array([np.cos(angle), np.sin(angle), 0.0])
        return make_transform(rotation_from_yaw(angle + np.pi / 2), position)

    def boxes(self, stamp: int) -> Boxes3D:
        """Return all boxes in the global frame."""
        angles = self._angles + (stamp - START) / 1e9 * self._directions * self._speeds / self._radii
        yaws = angles + self._directions * np.pi / 2
        centers = np.stack([self._radii * np.cos(angles), self._radii * np.sin(angles), self._sizes[:, 2] / 2], 1)
        velocities = self._speeds[:, None] * np.stack([np.cos(yaws), np.sin(yaws)], 1)
        return Boxes3D(centers, self._sizes, yaws, velocities, np.ones(len(yaws)), self._labels, NUSCENES_CLASSES)

    def boxes_in_ego(self, stamp: int, reach: float = 50.0) -> Boxes3D:
        """Return the boxes within `reach` m of the car, in base_link."""
        boxes, global2ego = self.boxes(stamp), invert_transform(self.ego2global(stamp))
        centers = transform_points(global2ego, boxes.centers)
        yaws = boxes.yaws + yaw_from_rotation(global2ego[:3, :3])
        moved = Boxes3D(
            centers,
            boxes.sizes,
            (yaws + np.pi) % (2 * np.pi) - np.pi,
            boxes.velocities @ global2ego[:2, :2].T,
            boxes.scores,
            boxes.labels,
            boxes.class_names,
        )
        return moved.select(np.hypot(centers[:, 0], centers[:, 1]) < reach)


def _place(
    rng: np.random.Generator, radius: float, direction: int, speed: float, counts: dict[str, int]
) -> tuple[np.ndarray, ...]:
    """Spread one lane's road users over the ring; return labels, radii, angles (rad), directions, speeds, each [n]."""
    labels = rng.permutation([NUSCENES_CLASSES.index(name) for name, count in counts.items() for _ in range(count)])
    n = len(labels)
    angles = 2 * np.pi * (np.arange(n) + 0.5 + rng.uniform(-0.2, 0.2, n)) / n
    return labels, np.full(n, radius), angles, np.full(n, direction), np.full(n, speed)


def synthetic_rig(image_size: tuple[int, int] = NUSCENES_IMAGE_SIZE) -> tuple[CameraRig, ...]:
    """Return the six cameras for images of (width, height) pixels, in the order of CAMERAS."""
    width, height = image_size
    rig = []
    for name in CAMERAS:
        (focal, cx, cy), translation, quaternion, _ = _RIG[name]
        full = np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1.0]])
        k = np.diag([*np.divide(image_size, NUSCENES_IMAGE_SIZE), 1.0]) @ full
        sensor2ego = make_transform(rotation_from_quaternion(*quaternion), np.array(translation))
        rig.append(CameraRig(name, Calibration(k, width, height), sensor2ego))
    return tuple(rig)


def synthetic_drive(
    seconds: float, seed: int = 0, image_size: tuple[int, int] = NUSCENES_IMAGE_SIZE, rate: float = 12.0
) -> Drive:
    """Return a drive with six cameras and an ego pose for each image; the images are drawn during iteration.

    seconds: length, s
    seed: World(seed) is the truth
    image_size: width and height of the images, pixels
    rate: of each camera, Hz
    """
    rig = synthetic_rig(image_size)
    shots = sorted(
        (START + round(tick / rate * 1e9) + _RIG[camera.name][3] * 1_000_000, i)
        for tick in range(max(1, round(seconds * rate)))
        for i, camera in enumerate(rig)
    )

    def events() -> Iterator[DriveEvent]:
        world = World(seed)
        scenery = world.scenery()
        painters = [Painter(camera) for camera in rig]
        for stamp, i in shots:
            ego2global = world.ego2global(stamp)
            yield DrivePose(stamp, ego2global)
            image = painters[i].paint(scenery, ego2global, world.boxes(stamp), world.colors)
            jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
            yield DriveImage(rig[i].name, stamp, jpeg.tobytes())

    return Drive(f"synthetic-{seed}", rig, 2 * len(shots), events)
