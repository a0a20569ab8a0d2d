"""A recorded drive, whatever it comes from: a rig of cameras, and images and ego poses in the order of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bev_perception.types import Calibration

#: the cameras' default names, in the order in which nuScenes-trained models take them
CAMERAS = ("cam_front", "cam_front_right", "cam_front_left", "cam_back", "cam_back_left", "cam_back_right")


@dataclass(frozen=True)
class CameraRig:
    """One mounted camera; its name is also its optical frame's.  sensor2ego: [4, 4], optical frame to base_link."""

    name: str
    calibration: Calibration
    sensor2ego: np.ndarray


@dataclass(frozen=True)
class DriveImage:
    """An image.  camera: name in the rig.  stamp: ns.  jpeg: the encoded bytes."""

    camera: str
    stamp: int
    jpeg: bytes


@dataclass(frozen=True)
class DrivePose:
    """Where the car was.  stamp: ns.  ego2global: [4, 4]."""

    stamp: int
    ego2global: np.ndarray


DriveEvent = DriveImage | DrivePose


@dataclass(frozen=True)
class Drive:
    """A drive that can be walked through any number of times.

    name: for messages.  cameras: the rig.  length: number of events.
    make_events: returns the events in the order of stamps; the pose at an image's stamp comes before the image.
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


#: (width, height) of its images, pixels
NUSCENES_IMAGE_SIZE = (1600, 900)
