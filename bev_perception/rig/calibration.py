"""Whether K, D, size, binning, region of interest, R and P of a camera_info agree with each other and the picture."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from bev_perception.rig.description import CameraInfo, RigCamera
from bev_perception.rig.findings import FAIL, OK, WARN, Finding, grade, judged
from bev_perception.rig.projection import border, rays_of
from bev_perception.sensing.view_checks import rectified_warning
from bev_perception.types import Calibration

#: fx / fy, or its inverse, from which focal lengths are unlike each other
UNEQUAL, VERY_UNEQUAL = 1.1, 1.6
#: degrees of the view's width that are usual; outside of the second pair no driving camera is
USUAL_VIEW, POSSIBLE_VIEW = (25.0, 160.0), (5.0, 220.0)
#: share by which P may zoom compared with K
ZOOM = 0.5


def check_calibration(camera: RigCamera) -> Iterator[Finding]:
    """Yield what is to be said about one camera's intrinsics."""
    if camera.calibration is None:
        reason = camera.calibration_error or "no camera_info has come"
        yield Finding("camera_info", camera.name, FAIL, reason, "publish a camera_info that fits the camera's images")
        return
    calibration = camera.calibration
    if camera.picture_size is not None:
        yield _picture_size(camera.name, calibration, camera.info, camera.picture_size)
    yield _focal_lengths(camera.name, calibration)
    yield _view(camera.name, calibration)
    yield _principal_point(camera.name, calibration)
    if camera.info is not None:
        yield _region(camera.name, camera.info)
        yield _projection(camera.name, camera.info, calibration)
    warning = rectified_warning(camera.topic, calibration)
    if warning:
        said, _, remedy = warning.partition("? ")
        yield Finding("rectified pictures", camera.name, WARN, f"{said}?", remedy)


def _picture_size(name: str, calibration: Calibration, info: CameraInfo | None, size: tuple[int, int]) -> Finding:
    said = (calibration.width, calibration.height)
    if size == said:
        return Finding("picture size", name, OK, f"{size[0]}x{size[1]} pixels, as camera_info says")
    figure = f"pictures have {size[0]}x{size[1]} pixels, camera_info says {said[0]}x{said[1]}"
    if info is not None and max(info.binning) > 1:
        figure += f" after a binning of {max(1, info.binning[0])}x{max(1, info.binning[1])}"
        if size == info.size:
            remedy = "binning is applied twice: camera_info is of binned pictures already; set binning to 0 or 1"
            return Finding("picture size", name, FAIL, figure, remedy)
    if size == said[::-1]:
        return Finding("picture size", name, FAIL, figure, "width and height are swapped, or the pictures are turned")
    ratio = size[0] / said[0]
    if abs(ratio - size[1] / said[1]) < 0.01 * ratio:
        remedy = (
            f"pictures are scaled by {ratio:.3g}: scale width, height and the first two rows of K by it, or publish "
            "the camera_info of the stream in use"
        )
    else:
        remedy = "pictures are cropped: give the crop as roi, or publish the camera_info of the stream in use"
    return Finding("picture size", name, FAIL, figure, remedy)


def _focal_lengths(name: str, calibration: Calibration) -> Finding:
    fx, fy = calibration.intrinsics[0, 0], calibration.intrinsics[1, 1]
    level = grade(max(fx / fy, fy / fx), UNEQUAL, VERY_UNEQUAL)
    remedy = "pixels are square in nearly all cameras: was the picture scaled in one direction, or K typed wrongly?"
    return judged("focal lengths", name, level, f"fx {fx:.0f}, fy {fy:.0f} pixels", remedy)


def _view(name: str, calibration: Calibration) -> Finding:
    width = view_width(calibration)
    inside = USUAL_VIEW[0] <= width <= USUAL_VIEW[1]
    possible = POSSIBLE_VIEW[0] <= width <= POSSIBLE_VIEW[1]
    level = OK if inside else WARN if possible else FAIL
    remedy = "compare with the lens' data sheet: is K in pixels, and of pictures of this size?"
    return judged("field of view", name, level, f"{width:.0f} degrees wide", remedy)


def view_width(calibration: Calibration) -> float:
    """Return the angle (degrees) between the rays through the middles of the left and the right border."""
    middle = calibration.intrinsics[1, 2]
    edges = np.array([[0, middle], [calibration.intrinsics[0, 2], middle], [calibration.width - 1, middle]])
    left, ahead, right = rays_of(calibration, edges)
    halves = (math.acos(float(np.clip(side @ ahead, -1.0, 1.0))) for side in (left, right))
    return math.degrees(sum(halves))


def _principal_point(name: str, calibration: Calibration) -> Finding:
    x, y = calibration.intrinsics[0, 2] / calibration.width, calibration.intrinsics[1, 2] / calibration.height
    figure = f"at {x:.0%} of the width and {y:.0%} of the height"
    middle = all(1 / 3 <= share <= 2 / 3 for share in (x, y))
    level = OK if middle else WARN if 0 < x < 1 and 0 < y < 1 else FAIL
    remedy = "it should lie in the middle third: is the picture cropped without a roi in camera_info?"
    if abs(x - y) < 0.12 and not middle:
        remedy = (
            f"K seems to be of pictures {x + y:.2g} times as large: scale K to the pictures' size, and see "
            "whether binning is counted twice"
        )
    return judged("principal point", name, level, figure, remedy)


def _region(name: str, info: CameraInfo) -> Finding:
    x, y, width, height = info.roi
    if not (width or height):
        return Finding("region of interest", name, OK, "the whole sensor")
    figure = f"{width}x{height} from ({x}, {y}) of {info.size[0]}x{info.size[1]}"
    level = OK if x + width <= info.size[0] and y + height <= info.size[1] else FAIL
    remedy = "the region lies beyond the sensor: width and height of camera_info are those of the whole sensor"
    return judged("region of interest", name, level, figure, remedy)


def _projection(name: str, info: CameraInfo, calibration: Calibration) -> Finding:
    """Compare R and P, which describe the rectified picture, with K."""
    turned = np.abs(info.r).any() and not np.allclose(info.r, np.eye(3), atol=1e-3)
    if turned and not calibration.distortion:
        angle = math.degrees(math.acos(float(np.clip((np.trace(info.r) - 1) / 2, -1, 1))))
        return Finding(
            "R and P",
            name,
            WARN,
            f"R turns by {angle:.1f} degrees while D is 0",
            "if the pictures are rectified, their frame is turned by R: let tf give the rectified frame, and set R to "
            "the identity",
        )
    if not np.abs(info.p).any():
        return Finding("R and P", name, OK, "P is not given")
    zoom = float(np.sqrt(info.p[0, 0] * info.p[1, 1] / (info.k[0, 0] * info.k[1, 1])))
    figure = f"P zooms by {zoom:.2f} compared with K"
    limit = ZOOM if calibration.distortion else 0.02
    level = WARN if not abs(zoom - 1) <= limit else OK
    remedy = "K and P are of pictures of different sizes, or D is missing: publish the calibration as it was measured"
    return judged("R and P", name, level, figure, remedy)


def border_rays(calibration: Calibration) -> np.ndarray:
    """Return the unit rays [n, 3] along the border of a camera's picture, in its frame."""
    return rays_of(calibration, border(calibration))
