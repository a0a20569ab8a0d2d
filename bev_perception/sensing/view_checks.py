"""Sentences about views that are formally right and hardly meant so: no optical frame, rectified twice, cut off."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from bev_perception.geometry import invert_transform
from bev_perception.types import Calibration, View

#: a word in the names of topics of rectified images, such as image_rect_color
_RECTIFIED = re.compile(r"(?:^|[/_])rect(?:ified)?(?:[/_]|$)")
#: rotation of the optical axes (x right, y down, z forward) in a body frame (x forward, y left, z up)
BODY_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
#: degrees above the horizon from which an optical axis, or what is taken for one, looks at the sky
TOO_STEEP = 55.0
#: m, and in each entry of the rotation, by which a pose on the vehicle may change until a view is judged anew
_STILL = 0.01
#: how far the frame that is meant may lie from the one that is given: m, and in each entry of the rotation
_NEAR, _ALIKE = 0.2, 0.1


def rectified_warning(topic: str, calibration: Calibration) -> str:
    """Return a warning if images are rectified by their topic's name but their calibration has a distortion, or "".

    topic: of the images, as their publisher names it
    calibration: from the CameraInfo that belongs to it
    """
    if not calibration.distortion or not _RECTIFIED.search(topic):
        return ""
    return (
        f"{topic} is rectified by its name, but D of its CameraInfo is of a {calibration.distortion_model} lens: "
        "is it the raw camera's? Rectified images need a CameraInfo with D = 0 and the left of P as K, or the setting "
        "rectified (--rectified), which takes R and P; otherwise they are undistorted twice"
    )


class JudgedViews:
    """The views that have been judged, so that each is judged once and not in every frame."""

    def __init__(self) -> None:
        """Start with none."""
        self._judged: dict[str, tuple[Calibration, np.ndarray, object]] = {}

    def is_new(self, view: View, known: object = None) -> bool:
        """Return whether a camera has no judged view of this calibration and pose yet, and note it as judged.

        known: what else the judgement depends on.
        """
        before = self._judged.get(view.image.camera)
        if before is not None:
            calibration, sensor2ego, knew = before
            moved = np.abs(sensor2ego - view.sensor2ego).max() > _STILL
            if not moved and knew == known and calibration.equals(view.calibration):
                return False
        self._judged[view.image.camera] = view.calibration, view.sensor2ego, known
        return True


def optical_warning(view: View, frame_id: str, links: Mapping[str, tuple[str, np.ndarray]]) -> str:
    """Return a warning if the frame of a camera's images is a body frame by its pose, or "".

    view: of the camera
    frame_id: the frame whose pose the view has
    links: static links of tf: child -> parent and child2parent [4, 4], among which the optical frame may be
    """
    if not is_body_frame(view.sensor2ego):
        return ""
    meant = optical_frame_of(view.sensor2ego, _neighbours(frame_id, view.sensor2ego, links))
    remedy = (
        f"tf has {meant} at the same place, whose axes fit: let the driver write it as frame_id, or set camera_frames "
        f"(--camera-frames) to {view.image.camera}:={meant}"
        if meant
        else "publish one on /tf_static, turned by roll -90 and yaw -90 degrees against the camera's body, and let "
        "the driver write it as frame_id"
    )
    return (
        f"{view.image.camera}: the frame of its images, {frame_id}, is no optical frame (x right, y down, z forward): "
        f"its z axis points up, so that the camera seems to look at the sky; {remedy}"
    )


def is_body_frame(sensor2ego: np.ndarray) -> bool:
    """Whether a frame [4, 4] is a body frame by its z axis: that of an optical frame points along the view, not up."""
    return bool(sensor2ego[2, 2] >= np.sin(np.radians(TOO_STEEP)))


def optical_frame_of(body2ego: np.ndarray, frames: Mapping[str, np.ndarray]) -> str:
    """Return the name of the frame that is the optical frame of a body frame, or "".

    body2ego: [4, 4]
    frames: name -> pose [4, 4] in base_link of the frames among which it may be
    """
    wanted = body2ego[:3, :3] @ BODY_FROM_OPTICAL
    away = {
        name: float(np.linalg.norm(pose[:3, 3] - body2ego[:3, 3]))
        for name, pose in frames.items()
        if np.abs(pose[:3, :3] - wanted).max() < _ALIKE
    }
    fitting = [name for name, distance in away.items() if distance < _NEAR]
    # of a pair of cameras side by side, the nearer one is meant
    return min(fitting, key=lambda name: ("optical" not in name, round(away[name], 2), name), default="")


def _neighbours(
    frame_id: str, body2ego: np.ndarray, links: Mapping[str, tuple[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return name -> pose [4, 4] in base_link of the children and the siblings of a frame in tf."""
    parent, body2parent = links.get(frame_id, ("", np.eye(4)))
    parent2ego = body2ego @ invert_transform(body2parent)
    found = {}
    for child, (child_of, child2parent) in links.items():
        if child_of == frame_id:
            found[child] = body2ego @ child2parent
        elif parent and child_of == parent and child != frame_id:
            found[child] = parent2ego @ child2parent
    return found


def shared_frame_warning(frames: Mapping[str, str]) -> str:
    """Return a warning if several cameras have one tf frame, so that they seem to look the same way, or "".

    frames: camera -> tf frame of its images
    """
    cameras: dict[str, list[str]] = {}
    for camera, frame in frames.items():
        cameras.setdefault(frame, []).append(camera)
    shared = [f"{', '.join(names)} have the one frame {frame}" for frame, names in cameras.items() if len(names) > 1]
    if not shared:
        return ""
    return (
        f"{'; '.join(shared)}: they seem to look the same way from the same place; let each driver write the optical "
        "frame of its own camera as frame_id, or set camera_frames (--camera-frames)"
    )


def horizon_row(calibration: Calibration, sensor2ego: np.ndarray) -> float | None:
    """Return the row of the undistorted picture in which the horizon lies; None for a camera that looks too steep.

    sensor2ego: [4, 4], of the camera
    """
    axis = sensor2ego[:3, 2]
    if np.hypot(axis[0], axis[1]) < np.cos(np.radians(TOO_STEEP)):
        return None
    level = np.array([axis[0], axis[1], 0.0])
    ray = calibration.intrinsics @ (sensor2ego[:3, :3].T @ level)
    return float(ray[1] / ray[2])


def rows_kept(source2output: np.ndarray, output_hw: tuple[int, int]) -> tuple[float, float]:
    """Return the first and the last row of a camera's picture that the model gets; the arguments are cut_off's."""
    output2source = np.linalg.inv(source2output)
    top, bottom = (float((output2source @ (output_hw[1] / 2, y, 1.0))[1]) for y in (0.0, float(output_hw[0] - 1)))
    return top, bottom


def cut_off(
    calibration: Calibration, sensor2ego: np.ndarray, source2output: np.ndarray, output_hw: tuple[int, int]
) -> bool:
    """Whether a picture holds the horizon, and the part of it that the model gets does not.

    calibration: of the camera
    sensor2ego: [4, 4], of the camera
    source2output: [3, 3], pixels of the camera's picture to those of the model's input
    output_hw: height and width of the model's input, pixels
    """
    row = horizon_row(calibration, sensor2ego)
    if row is None or calibration.distortion_model == "equidistant" or not 0 <= row < calibration.height:
        return False  # a lens so wide that no horizon lies in one row of the picture
    top, bottom = rows_kept(source2output, output_hw)
    return not top <= row <= bottom


def cut_off_warning(view: View, source2output: np.ndarray, output_hw: tuple[int, int]) -> str:
    """Return a warning if the part of a picture that the model gets does not hold the horizon, or "".

    view: of the camera
    source2output: as of cut_off
    output_hw: as of cut_off
    """
    calibration = view.calibration
    row = horizon_row(calibration, view.sensor2ego)
    if row is None or not cut_off(calibration, view.sensor2ego, source2output, output_hw):
        return ""
    top, bottom = rows_kept(source2output, output_hw)
    lost = 1 - (min(bottom, calibration.height) - max(top, 0.0)) / calibration.height
    return (
        f"{view.image.camera}: the model gets the rows {max(0, round(top))} to {round(bottom)} of its "
        f"{calibration.width}x{calibration.height} pixels; {100 * lost:.0f} % are cut off, with the horizon (row "
        f"{row:.0f}) and what lies near it, so that distant objects are not seen. Set image_fit (--image-fit) to "
        "horizon or virtual, or crop the pictures to the shape of "
        f"{output_hw[1]}x{output_hw[0]} around the horizon in the driver, and let camera_info say so (roi)"
    )
