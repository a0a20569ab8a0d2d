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
_BODY_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
#: z component in base_link of the third axis of a frame, from which that axis points up
_UP = 0.8
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


def optical_warning(view: View, frame_id: str, links: Mapping[str, tuple[str, np.ndarray]]) -> str:
    """Return a warning if the frame of a camera's images is a body frame by its pose, or "".

    view: of the camera
    frame_id: the frame whose pose the view has
    links: static links of tf: child -> parent and child2parent [4, 4], among which the optical frame may be
    """
    if view.sensor2ego[2, 2] < _UP:
        return ""
    meant = _optical_frame(frame_id, links)
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


def _optical_frame(frame_id: str, links: Mapping[str, tuple[str, np.ndarray]]) -> str:
    """Return the name of a child or a sibling of a body frame that is its optical frame, or ""."""
    parent, body2parent = links.get(frame_id, ("", np.eye(4)))
    fitting = []
    for child, (child_of, child2parent) in links.items():
        if child_of == frame_id:
            optical2body = child2parent
        elif parent and child_of == parent and child != frame_id:
            optical2body = invert_transform(body2parent) @ child2parent
        else:
            continue
        turned = np.abs(optical2body[:3, :3] - _BODY_FROM_OPTICAL).max()
        if turned < _ALIKE and np.linalg.norm(optical2body[:3, 3]) < _NEAR:
            fitting.append(child)
    return min(fitting, key=lambda name: ("optical" not in name, name), default="")


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


def cut_off_warning(view: View, source2output: np.ndarray, output_hw: tuple[int, int]) -> str:
    """Return a warning if the part of a picture that the model gets does not hold the horizon, or "".

    view: of the camera
    source2output: [3, 3], pixels of the camera's picture to those of the model's input
    output_hw: height and width of the model's input, pixels
    """
    calibration = view.calibration
    axis = view.sensor2ego[:3, 2]
    if np.hypot(axis[0], axis[1]) < 0.5 or calibration.distortion_model == "equidistant":
        return ""  # it looks up or down, or so wide that no horizon lies in one row
    level = np.array([axis[0], axis[1], 0.0])
    ray = calibration.intrinsics @ (view.sensor2ego[:3, :3].T @ level)
    if ray[2] <= 0:
        return ""
    row = ray[1] / ray[2]
    top, bottom = (
        float((np.linalg.inv(source2output) @ (output_hw[1] / 2, y, 1.0))[1]) for y in (0.0, float(output_hw[0] - 1))
    )
    if top <= row <= bottom or not 0 <= row < calibration.height:
        return ""
    lost = 1 - (min(bottom, calibration.height) - max(top, 0.0)) / calibration.height
    return (
        f"{view.image.camera}: the model gets the rows {max(0, round(top))} to {round(bottom)} of its "
        f"{calibration.width}x{calibration.height} pixels; {100 * lost:.0f} % are cut off, with the horizon (row "
        f"{row:.0f}) and what lies near it, so that distant objects are not seen. Set image_fit (--image-fit) to "
        "horizon or virtual, or crop the pictures to the shape of "
        f"{output_hw[1]}x{output_hw[0]} around the horizon in the driver, and let camera_info say so (roi)"
    )
