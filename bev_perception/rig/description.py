"""A rig as the checks see it: what each camera's camera_info says, and where tf puts the camera."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bev_perception.types import Calibration


@dataclass(frozen=True)
class CameraInfo:
    """The fields of a sensor_msgs/CameraInfo that the intrinsics of a Calibration no longer show.

    size: width and height that K belongs to, pixels
    k: [3, 3]
    r: [3, 3], rectification; all zero if it is not given
    p: [3, 4], of the rectified pictures; all zero if it is not given
    binning: along x and y; 0 and 1 mean none
    roi: x offset, y offset, width and height, pixels of the whole sensor; a width and height of 0 mean all of it
    """

    size: tuple[int, int]
    k: np.ndarray
    r: np.ndarray
    p: np.ndarray
    binning: tuple[int, int] = (0, 0)
    roi: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class RigCamera:
    """One camera of a rig; None stands for what has not arrived.

    name: from the list of cameras
    frame: tf frame that its images name
    topic: of its images, as the publisher calls it
    info: as it was published
    calibration: of its images, made of `info`
    calibration_error: why `calibration` is None
    sensor2ego: [4, 4], the frame of the images to base_link
    picture_size: width and height of its pictures, pixels
    """

    name: str
    frame: str = ""
    topic: str = ""
    info: CameraInfo | None = None
    calibration: Calibration | None = None
    calibration_error: str = ""
    sensor2ego: np.ndarray | None = None
    picture_size: tuple[int, int] | None = None

    @property
    def complete(self) -> bool:
        """Whether both its calibration and its pose are known."""
        return self.calibration is not None and self.sensor2ego is not None


@dataclass(frozen=True)
class Rig:
    """The cameras of a vehicle.

    cameras: in the configured order
    base_height: height of base_link above the ground, m
    base_frame: tf frame of the vehicle
    frames: other tf frames -> their pose [4, 4] in base_link, to name the optical frame that may have been meant
    """

    cameras: tuple[RigCamera, ...]
    base_height: float = 0.0
    base_frame: str = "base_link"
    frames: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def complete(self) -> list[RigCamera]:
        """The cameras whose calibration and pose are known."""
        return [camera for camera in self.cameras if camera.complete]
