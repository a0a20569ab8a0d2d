"""A rig in a YAML file: cameras of any number, size, lens and mounting, in words a person would measure them in."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bev_perception.geometry import make_transform, optical_angles, optical_rotation
from bev_perception.rig.description import Rig, RigCamera
from bev_perception.strict import ConfigError, UserError, from_dict, read_yaml
from bev_perception.types import DISTORTION_MODELS, Calibration

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_KEYS = ("cameras", "base_height")
LENSES = ("pinhole", *DISTORTION_MODELS)


@dataclass(frozen=True)
class CameraEntry:
    """One camera of a rig file.

    size: width and height of its pictures, pixels
    at: x forward, y left and z up in the base frame, m
    yaw: degrees to the left of straight ahead
    pitch: degrees above the horizon
    roll: degrees clockwise about the view's axis
    fov: horizontal field of view of the lens without its distortion, degrees; in the place of `focal`
    focal: focal lengths along x and y, pixels; in the place of `fov`
    center: principal point, pixels; the picture's middle unless it is given
    lens: "pinhole", "plumb_bob", "rational_polynomial" or "equidistant" (fisheye)
    distortion: D of CameraInfo, as many coefficients as the lens has
    """

    size: tuple[int, int]
    at: tuple[float, float, float]
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    fov: float | None = None
    focal: tuple[float, float] | None = None
    center: tuple[float, float] | None = None
    lens: str = "pinhole"
    distortion: tuple[float, ...] = ()

    def calibration(self) -> Calibration:
        """Return the calibration; raise UserError for values that no camera has."""
        if self.lens not in LENSES:
            raise UserError(f"there is no lens {self.lens!r}; there are {', '.join(LENSES)}")
        width, height = self.size
        x, y = self.center or ((width - 1) / 2, (height - 1) / 2)
        fx, fy = self.focal or (self._focal_of_fov(),) * 2
        model = "" if self.lens == "pinhole" else self.lens
        distortion = self.distortion or ((0.0,) * 4 if self.lens == "equidistant" else ())
        if not model and distortion:
            raise UserError("a pinhole has no distortion; name the lens")
        return Calibration(np.array([[fx, 0, x], [0, fy, y], [0, 0, 1.0]]), width, height, model, distortion)

    def _focal_of_fov(self) -> float:
        limit = 360.0 if self.lens == "equidistant" else 170.0
        if self.fov is None or not 0 < self.fov <= limit:
            raise UserError(f"give focal: [fx, fy] in pixels, or fov in degrees, up to {limit:g}; fov is {self.fov}")
        half = math.radians(self.fov) / 2
        return self.size[0] / 2 / (half if self.lens == "equidistant" else math.tan(half))


def read_rig(path: Path) -> Rig:
    """Return the rig in a YAML file.

    The file holds `cameras`, which gives each camera by its name the keys of CameraEntry, and `base_height`, the height
    of the base frame above the ground in m (0 unless it is given).

    Raises ConfigError, naming file, camera and remedy.
    """
    values = read_yaml(path)
    if unknown := sorted(str(key) for key in values if key not in _KEYS):
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}; a rig has {' and '.join(_KEYS)}")
    cameras = values.get("cameras")
    if not isinstance(cameras, dict) or not cameras:
        raise ConfigError(f"{path}: `cameras` must give each camera by its name, such as front: {{size: [1280, 720]}}")
    height = values.get("base_height", 0.0)
    if isinstance(height, bool) or not isinstance(height, int | float) or not math.isfinite(height):
        raise ConfigError(f"{path}: base_height is {height!r}; it must be a number of meters")
    return Rig(tuple(_camera(path, name, entry) for name, entry in cameras.items()), float(height))


def _camera(path: Path, name: Any, entry: Any) -> RigCamera:
    check_name(name)
    try:
        given: CameraEntry = from_dict(CameraEntry, entry, f"cameras.{name}")
        if given.fov is not None and given.focal is not None:
            raise ConfigError("give one of fov and focal")
        angles = (math.radians(angle) for angle in (given.yaw, given.pitch, given.roll))
        pose = make_transform(optical_rotation(*angles), np.array(given.at))
        return RigCamera(name, name, calibration=given.calibration(), sensor2ego=pose)
    except UserError as error:
        raise ConfigError(f"{path}: camera {name}: {error}") from error


def check_name(name: Any) -> None:
    """Raise ConfigError for what cannot be a camera's name in topics, tables and folders alike."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for a camera here; use lower-case letters, digits and _, such as cam_1")


def rig_document(rig: Rig) -> dict[str, Any]:
    """Return plain values of a rig, which read_rig takes as a file.

    Raises ConfigError for a camera whose calibration or pose is not known.
    """
    cameras = {}
    for camera in rig.cameras:
        calibration, pose = camera.calibration, camera.sensor2ego
        check_name(camera.name)
        if calibration is None or pose is None:
            lacking = "pose in tf" if pose is None else f"calibration {camera.calibration_error}".strip()
            raise ConfigError(f"camera {camera.name} has no {lacking}; record it, or leave the camera out (--cameras)")
        k = calibration.intrinsics
        yaw, pitch, roll = (round(math.degrees(angle), 6) for angle in optical_angles(pose[:3, :3]))
        cameras[camera.name] = {
            "size": [calibration.width, calibration.height],
            "at": [round(x, 6) for x in pose[:3, 3].tolist()],
            **{"yaw": yaw, "pitch": pitch, "roll": roll},
            "focal": [float(k[0, 0]), float(k[1, 1])],
            "center": [float(k[0, 2]), float(k[1, 2])],
            "lens": calibration.distortion_model if calibration.distortion else "pinhole",
            "distortion": list(calibration.distortion),
        }
    return {"cameras": cameras, "base_height": rig.base_height}
