"""A recorded drive from any source: a rig of cameras, and images and ego poses in order of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bev_perception.types import Calibration

#: default camera names, in the order that models trained on nuScenes expect
CAMERAS = ("cam_front", "cam_front_right", "cam_front_left", "cam_back", "cam_back_left", "cam_back_right")


@dataclass(frozen=True)
class CameraRig:
    """One mounted camera.

    name: of the camera and of its optical frame
    calibration: intrinsics and distortion
    sensor2ego: [4, 4], optical frame to base_link
    """

    name: str
    calibration: Calibration
    sensor2ego: np.ndarray


@dataclass(frozen=True)
class DriveImage:
    """An image.

    camera: name in the rig
    stamp: ns
    jpeg: the encoded bytes
    """

    camera: str
    stamp: int
    jpeg: bytes


@dataclass(frozen=True)
class DrivePose:
    """The pose of the car.

    stamp: ns
    ego2global: [4, 4], base_link to the global frame
    """

    stamp: int
    ego2global: np.ndarray


DriveEvent = DriveImage | DrivePose


@dataclass(frozen=True)
class Drive:
    """A drive that can be iterated over any number of times.

    name: used in messages
    cameras: the rig
    length: number of events
    make_events: returns the events in order of stamps; the pose at an image's stamp comes before the image
    """

    name: str
    cameras: tuple[CameraRig, ...]
    length: int
    make_events: Callable[[], Iterator[DriveEvent]]

    def __len__(self) -> int:
        """Return the number of events."""
        return self.length

    def __iter__(self) -> Iterator[DriveEvent]:
        """Return the events, from the start."""
        return self.make_events()


#: (width, height) of the images of nuScenes, pixels
NUSCENES_IMAGE_SIZE = (1600, 900)
