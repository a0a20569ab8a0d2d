"""Whether the cameras are where cameras of a vehicle are: frames, directions, heights, duplicates, coverage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from bev_perception.rig.description import Rig, RigCamera
from bev_perception.rig.findings import FAIL, OK, WARN, Finding, grade, judged
from bev_perception.rig.projection import see
from bev_perception.sensing.view_checks import TOO_STEEP, is_body_frame, optical_frame_of

#: degrees of the optical axis above or below the horizon, from which that is unusual
STEEP = 25.0
#: degrees by which a camera is rolled
ROLLED, LYING = 12.0, 45.0
#: m above the ground: usual, and possible at all
USUAL_HEIGHT, POSSIBLE_HEIGHT = (0.3, 4.0), (0.05, 8.0)
#: m from base_link
FAR, TOO_FAR = 8.0, 30.0
#: m and degrees within which two cameras are one
SAME_PLACE, SAME_DIRECTION = 0.02, 5.0
#: share of the circle that should be seen
COVERED = 0.95
#: m; where the circle lies that the cameras should see
CIRCLE = 30.0


def check_mounting(rig: Rig) -> Iterator[Finding]:
    """Yield what is to be said about the poses of the cameras."""
    for camera in rig.cameras:
        if camera.sensor2ego is None:
            yield _no_pose(rig, camera)
            continue
        optical = _optical_frame(rig, camera, camera.sensor2ego)
        yield optical
        if optical.level == OK:
            yield _direction(camera.name, camera.sensor2ego)
            yield _upright(camera.name, camera.sensor2ego)
        yield _height(rig, camera.name, camera.sensor2ego)
        yield _distance(rig, camera.name, camera.sensor2ego)
    yield from _duplicates(rig.cameras)
    if rig.complete:
        yield check_coverage(rig)


def _no_pose(rig: Rig, camera: RigCamera) -> Finding:
    figure = f"tf knows no way from {camera.frame or 'the frame of its images'} to {rig.base_frame}"
    remedy = (
        "publish the camera's mounting on /tf_static, or start robot_state_publisher; --base-frame names another frame "
        "of the vehicle"
    )
    return Finding("mounting", camera.name, FAIL, figure, remedy)


def _optical_frame(rig: Rig, camera: RigCamera, sensor2ego: np.ndarray) -> Finding:
    """Tell a body frame by its z axis, which points up where that of an optical frame points along the view."""
    up = float(sensor2ego[2, 2])
    figure = f"{camera.frame or 'its frame'}: z points {math.degrees(math.asin(np.clip(up, -1, 1))):+.0f} degrees up"
    if not is_body_frame(sensor2ego):
        return Finding("optical frame", camera.name, OK, figure)
    meant = optical_frame_of(sensor2ego, rig.frames)
    remedy = (
        "images need an optical frame (x right, y down, z forward), and this is a body frame (x forward, z up): "
        + (
            f"tf has {meant}, which fits; let the driver write it as frame_id, or set camera_frames (--camera-frames)"
            if meant
            else "publish <camera>_optical_frame, rotated by roll -90 and yaw -90 degrees, and let the driver write it "
            "as frame_id"
        )
    )
    return Finding("optical frame", camera.name, FAIL, f"{figure}, x forward", remedy)


def _direction(name: str, sensor2ego: np.ndarray) -> Finding:
    axis = sensor2ego[:3, 2]
    steepness = math.degrees(math.asin(float(np.clip(axis[2], -1.0, 1.0))))
    where = f"looks {math.degrees(math.atan2(axis[1], axis[0])):+.0f} degrees to the left, {steepness:+.0f} degrees up"
    level = grade(abs(steepness), STEEP, TOO_STEEP)
    remedy = "cameras look sideways: check the rotation in tf (radians? order of roll, pitch, yaw?)"
    return judged("direction", name, level, where, remedy)


def _upright(name: str, sensor2ego: np.ndarray) -> Finding:
    roll = math.degrees(math.atan2(sensor2ego[2, 0], -sensor2ego[2, 1]))
    level = grade(abs(roll), ROLLED, LYING)
    remedy = "upside down" if abs(roll) > 135 else "lying on its side" if abs(roll) > LYING else "rolled"
    remedy += ": turn the pictures upright in the driver, and let tf and camera_info be of the turned pictures"
    return judged("upright", name, level, f"rolled by {roll:+.0f} degrees", remedy)


def _height(rig: Rig, name: str, sensor2ego: np.ndarray) -> Finding:
    height = float(sensor2ego[2, 3]) + rig.base_height
    inside = USUAL_HEIGHT[0] <= height <= USUAL_HEIGHT[1]
    possible = POSSIBLE_HEIGHT[0] <= height <= POSSIBLE_HEIGHT[1]
    remedy = (
        f"is {rig.base_frame} on the ground? Say how high it is with --base-height; else correct the camera's "
        "translation in tf"
    )
    level = OK if inside else WARN if possible else FAIL
    return judged("height", name, level, f"{height:.2f} m above the ground", remedy)


def _distance(rig: Rig, name: str, sensor2ego: np.ndarray) -> Finding:
    distance = float(np.linalg.norm(sensor2ego[:3, 3]))
    level = grade(distance, FAR, TOO_FAR)
    remedy = "that is far for a vehicle: are translations in tf in metres, and is the frame a part of the vehicle?"
    return judged("place", name, level, f"{distance:.2f} m from {rig.base_frame}", remedy)


def _duplicates(cameras: Sequence[RigCamera]) -> Iterator[Finding]:
    for a, b in itertools.combinations(cameras, 2):
        if a.sensor2ego is None or b.sensor2ego is None:
            continue
        apart = float(np.linalg.norm(a.sensor2ego[:3, 3] - b.sensor2ego[:3, 3]))
        angle = math.degrees(math.acos(float(np.clip(a.sensor2ego[:3, 2] @ b.sensor2ego[:3, 2], -1.0, 1.0))))
        if apart < SAME_PLACE and angle < SAME_DIRECTION:
            said = f"{100 * apart:.1f} cm and {angle:.1f} degrees apart"
            same = f": both name the frame {a.frame}" if a.frame and a.frame == b.frame else ""
            remedy = f"two cameras cannot be one{same}; give each its own frame_id and mounting"
            yield Finding("two in one place", f"{a.name} + {b.name}", FAIL, said, remedy)


def seen_headings(rig: Rig) -> np.ndarray:
    """Return the mask [360] of the directions, by degrees counter-clockwise from ahead, in which a camera sees.

    What counts is a point at the height of the camera, CIRCLE m from base_link.
    """
    headings = np.radians(np.arange(360.0))
    seen = np.zeros(360, bool)
    for camera in rig.complete:
        assert camera.calibration is not None and camera.sensor2ego is not None
        height = np.full(360, camera.sensor2ego[2, 3])
        ring = np.stack([CIRCLE * np.cos(headings), CIRCLE * np.sin(headings), height], 1)
        seen |= see(camera.calibration, camera.sensor2ego, ring)[1]
    return seen


def check_coverage(rig: Rig) -> Finding:
    """Return how much of the circle is seen, and where it is not."""
    seen = seen_headings(rig)
    share = float(seen.mean())
    blind = ", ".join(f"{a:+d} to {b:+d}" for a, b in _gaps(seen))
    figure = f"{share:.0%} of the circle is seen" + (
        f"; blind from {blind} degrees (counter-clockwise)" if blind else ""
    )
    level = OK if share >= COVERED else WARN if share > 0 else FAIL
    remedy = "nothing is found where no camera looks, and costmaps stay unknown there; add cameras if that matters"
    return judged("coverage", "rig", level, figure, remedy)


def _gaps(seen: np.ndarray) -> list[tuple[int, ...]]:
    """Return first and last heading (degrees, -180..180) of each run of directions that nobody sees."""
    if not seen.any():
        return [(-180, 180)]
    start = int(np.argmax(seen))  # runs do not wrap around from here on
    turned = np.roll(seen, -start)
    edges = np.flatnonzero(np.diff(np.r_[True, turned, True].astype(int)))
    return [_signed(int(a) + start, int(b) - 1 + start) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _signed(*headings: int) -> tuple[int, ...]:
    """Return headings (degrees) within -180..179."""
    return tuple((heading + 180) % 360 - 180 for heading in headings)
