"""How images are grouped into sets, and what is told of their cameras."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from bev_perception.geometry import make_transform
from bev_perception.strict import UserError
from bev_perception.types import BASE_FRAME, FIXED_FRAME, Calibration


@dataclass(frozen=True)
class SynchronizerSettings:
    """How images are grouped into sets; times are in seconds of header time.

    cameras: names, in the order in which the frames list them.
    anchor: camera whose image starts a set and gives it its stamp; "" is the first one.  While it is silent, the first
    camera that is not silent takes its place.
    max_stamp_difference: s; furthest that an image may lie from the anchor's, and never more than half the anchor's
    period.
    camera_timeout: s; how long a set waits for a camera before it goes on without it.
    tf_timeout: s; how long a set waits for its camera_info and tf.
    base_frame: tf frame of the vehicle.
    fixed_frame: tf frame of the world that the vehicle moves in.
    base_height: m; how high base_frame is above the ground.
    camera_frames: camera -> tf frame that its images are of, whatever their header says.
    rectified: cameras whose images are rectified, so that R and P of their CameraInfo count, not K and D; "*": all.
    """

    cameras: tuple[str, ...]
    anchor: str = ""
    max_stamp_difference: float = 0.05
    camera_timeout: float = 0.1
    tf_timeout: float = 0.2
    base_frame: str = BASE_FRAME
    fixed_frame: str = FIXED_FRAME
    camera_frames: Mapping[str, str] = field(default_factory=dict)
    rectified: tuple[str, ...] = ()
    base_height: float = 0.0

    def __post_init__(self) -> None:
        """Check the camera names and the times."""
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise UserError(f"cameras must name at least one camera, each once; got {list(self.cameras)}")
        if self.anchor and self.anchor not in self.cameras:
            raise UserError(f"anchor_camera {self.anchor!r} is none of the cameras {list(self.cameras)}")
        for name, cameras in (("camera_frames", self.camera_frames), ("rectified", self.rectified)):
            strangers = set(cameras) - {*self.cameras, *(["*"] if name == "rectified" else [])}
            if strangers:
                raise UserError(
                    f"{name} names {', '.join(sorted(strangers))}, none of the cameras {list(self.cameras)}"
                )
        if not math.isfinite(self.base_height):
            raise UserError(f"base_height is {self.base_height} m; it must be finite")
        for name in ("max_stamp_difference", "camera_timeout", "tf_timeout"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds >= 0):
                raise UserError(f"{name} is {seconds} s; it must be finite and not negative")

    def is_rectified(self, camera: str) -> bool:
        """Return whether the images of a camera are said to be rectified."""
        return not {camera, "*"}.isdisjoint(self.rectified)


def mounted(calibration: Calibration, sensor2ego: np.ndarray) -> np.ndarray:
    """Return the pose [4, 4] of the frame that a calibration is of: where images are rectified, R turns it.

    sensor2ego: [4, 4] of the camera's optical frame
    """
    if not calibration.rectified or calibration.rectification is None:
        return sensor2ego
    return sensor2ego @ make_transform(calibration.rectification.T, np.zeros(3))


def camera_frames(rules: Iterable[str]) -> dict[str, str]:
    """Return camera -> tf frame from rules CAMERA:=FRAME; raises UserError for what is no rule."""
    frames = {}
    for rule in rules:
        camera, sign, frame = rule.partition(":=")
        if not (camera and sign and frame):
            raise UserError(f"camera_frames: {rule!r} names no frame; write CAMERA:=FRAME")
        frames[camera] = frame.lstrip("/")
    return frames
