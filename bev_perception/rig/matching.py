"""Whether neighbouring cameras agree: matched points of their pictures against the epipolar geometry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from scipy.spatial import cKDTree

from bev_perception.geometry import invert_transform
from bev_perception.rig.description import RigCamera
from bev_perception.rig.findings import OK, Finding, grade, judged
from bev_perception.rig.projection import project_rays, see
from bev_perception.rig.recording import Recording
from bev_perception.types import Calibration

#: degrees between the directions that an overlap is sampled with, and the highest of them above and below the horizon
_STEP, _HIGHEST = 2.0, 24.0
#: directions that two views must share to be compared
SHARED = 12
#: matched points that a judgement needs
MATCHES = 12
#: pixels of the cameras' pictures for a width of 1600: from WRONG on calibration and pictures contradict each other
SUSPICIOUS, WRONG = 6.0, 20.0
#: degrees by which the two rays of a matched point may differ; what is near differs by parallax
_PARALLAX = 12.0
#: width and height (pixels) and focal length of the virtual view that both pictures are compared in, 64 degrees wide
SIDE = 512
_FOCAL = SIDE / 2 / math.tan(math.radians(32.0))
#: other matches that a match must agree with in its shift, and pixels within which two agree
COMPANY, _ALIKE = 2, 8.0
#: features of a view, and the ratio of the best to the second best distance that a match needs
_FEATURES, _RATIO = 1000, 0.75


def check_neighbours(recording: Recording) -> Iterator[Finding]:
    """Yield how well each pair of cameras whose views overlap agrees, by the median over matched points."""
    for a, b in itertools.combinations(recording.rig.complete, 2):
        middle = shared_direction(a, b)
        if middle is not None:
            yield _judge(a, b, _errors(recording, a, b, middle))


def _judge(a: RigCamera, b: RigCamera, errors: np.ndarray) -> Finding:
    names = f"{a.name} + {b.name}"
    if len(errors) < MATCHES:
        return Finding("neighbours agree", names, OK, f"not judged: {len(errors)} points match, {MATCHES} are needed")
    assert a.calibration is not None
    median = float(np.median(errors))
    figure = f"{median:.1f} pixels, median of {len(errors)} matched points"
    level = grade(median * 1600 / a.calibration.width, SUSPICIOUS, WRONG)
    remedy = (
        "calibration and pictures contradict each other: check these two cameras' mounting in tf, K and D, and whether "
        "their topics are mixed up; calibrate anew if all of that is right"
    )
    return judged("neighbours agree", names, level, figure, remedy)


def shared_direction(a: RigCamera, b: RigCamera) -> np.ndarray | None:
    """Return the middle [3] of the directions in base_link that both cameras see; None if they hardly overlap."""
    headings, heights = np.arange(0, 360, _STEP), np.arange(-_HIGHEST, _HIGHEST + 1, 2 * _STEP)
    azimuth, elevation = (grid.ravel() for grid in np.meshgrid(np.radians(headings), np.radians(heights)))
    flat = np.cos(elevation)
    directions = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], 1)
    both = np.ones(len(directions), bool)
    for camera in (a, b):
        assert camera.calibration is not None and camera.sensor2ego is not None
        at_infinity = np.eye(4)
        at_infinity[:3, :3] = camera.sensor2ego[:3, :3]
        both &= see(camera.calibration, at_infinity, directions)[1]
    if both.sum() < SHARED:
        return None
    middle = directions[both].mean(0)
    length = float(np.linalg.norm(middle))
    return middle / length if length > 0.2 else directions[both][0]  # else the two see all around


def _errors(recording: Recording, a: RigCamera, b: RigCamera, middle: np.ndarray) -> np.ndarray:
    """Return the distances [n] (pixels of a) of matched points from their epipolar lines, over all moments."""
    assert a.calibration is not None and b.calibration is not None
    assert a.sensor2ego is not None and b.sensor2ego is not None
    view2ego = _look_along(middle)
    turns = [camera.sensor2ego[:3, :3].T @ view2ego for camera in (a, b)]  # type: ignore[index]
    maps = [_view_map(a.calibration, turns[0]), _view_map(b.calibration, turns[1])]
    shifts, errors = [np.zeros((0, 2))], [np.zeros(0)]
    for moment in recording.moments:
        if a.name not in moment or b.name not in moment:
            continue
        first, second = moment[a.name], moment[b.name]
        a2b = _a2b(recording, a, b, first.stamp, second.stamp)
        if a2b is None:
            continue
        views = [cv2.remap(p.gray, m.x, m.y, cv2.INTER_LINEAR) for p, m in zip((first, second), maps, strict=True)]
        points = match_points(views[0], views[1], maps[0].mask, maps[1].mask)
        rays = [_view_rays(p) @ turn.T for p, turn in zip(points, turns, strict=True)]
        shifts.append(points[1] - points[0])
        errors.append(epipolar_errors(rays[0], rays[1], a2b) * float(a.calibration.intrinsics[0, 0]))
    return np.concatenate(errors)[in_company(np.concatenate(shifts))]


def in_company(shifts: np.ndarray) -> np.ndarray:
    """Return which matches [n] are shifted as at least COMPANY others are; false matches are shifted anyhow.

    shifts: [n, 2] pixels
    """
    if len(shifts) == 0:
        return np.zeros(0, bool)
    return cKDTree(shifts).query_ball_point(shifts, _ALIKE, return_length=True) > COMPANY


def _a2b(recording: Recording, a: RigCamera, b: RigCamera, stamp_a: int, stamp_b: int) -> np.ndarray | None:
    """Return the transform from camera a at its stamp to camera b at its own; without odometry, as if it stood."""
    assert a.sensor2ego is not None and b.sensor2ego is not None
    if len(recording.poses.stamps) == 0:
        return invert_transform(b.sensor2ego) @ a.sensor2ego
    pose_a, pose_b = recording.poses.at(stamp_a), recording.poses.at(stamp_b)
    if pose_a is None or pose_b is None:
        return None
    return invert_transform(pose_b @ b.sensor2ego) @ pose_a @ a.sensor2ego


def epipolar_errors(rays_a: np.ndarray, rays_b: np.ndarray, a2b: np.ndarray) -> np.ndarray:
    """Return the angles [n] (rad) between the rays of matched points in b and their epipolar planes.

    rays_a, rays_b: [n, 3] unit rays in the frames of the cameras
    a2b: [4, 4]; cameras in one place are compared by direction alone
    """
    turned = rays_a @ a2b[:3, :3].T
    normal = np.cross(a2b[:3, 3], turned)  # of the plane through both cameras and the point, in b
    length = np.linalg.norm(normal, axis=1)
    usable = length > 1e-3
    angles = np.arccos(np.clip((turned * rays_b).sum(1), -1.0, 1.0))
    off_plane = np.abs((normal * rays_b).sum(1)) / np.maximum(length, 1e-9)
    return np.where(usable, np.arcsin(np.clip(off_plane, 0.0, 1.0)), angles)


def _look_along(direction: np.ndarray) -> np.ndarray:
    """Return the rotation [3, 3] of an upright camera that looks along a direction of base_link."""
    right = np.cross(direction, (0.0, 0.0, 1.0))
    right /= max(float(np.linalg.norm(right)), 1e-9)
    return np.stack([right, np.cross(direction, right), direction], 1)


class _ViewMap(NamedTuple):
    """Where the pixels of a virtual view are in a camera's picture.

    x, y: [SIDE, SIDE] float32
    mask: [SIDE, SIDE] uint8, nonzero where the camera shows the view
    """

    x: np.ndarray
    y: np.ndarray
    mask: np.ndarray


def _view_map(calibration: Calibration, view2sensor: np.ndarray) -> _ViewMap:
    u, v = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    rays = _view_rays(np.stack([u, v], -1).reshape(-1, 2))
    pixels, seen = project_rays(calibration, rays @ view2sensor.T)
    pixels[~seen] = -16.0
    x, y = (pixels[:, i].reshape(SIDE, SIDE).astype(np.float32) for i in (0, 1))
    return _ViewMap(x, y, cv2.erode(seen.reshape(SIDE, SIDE).astype(np.uint8) * 255, np.ones((9, 9), np.uint8)))


def _view_rays(pixels: np.ndarray) -> np.ndarray:
    """Return the unit rays [n, 3] of pixels [n, 2] of a virtual view."""
    rays = np.c_[(pixels - SIDE / 2) / _FOCAL, np.ones(len(pixels))]
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def match_points(
    first: np.ndarray, second: np.ndarray, first_mask: np.ndarray, second_mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels [n, 2], [n, 2] of SIFT features that are each other's best match and moved little.

    first, second: [H, W] uint8
    first_mask, second_mask: [H, W] uint8, nonzero where there is a picture
    """
    sift = cv2.SIFT.create(_FEATURES)
    points_a, found_a = sift.detectAndCompute(first, first_mask)
    points_b, found_b = sift.detectAndCompute(second, second_mask)
    empty = np.zeros((0, 2))
    if found_a is None or found_b is None or min(len(found_a), len(found_b)) < 2:
        return empty, empty
    there = _best(found_a, found_b)
    back = _best(found_b, found_a)
    pairs = [(i, j) for i, j in there.items() if back.get(j) == i]
    if not pairs:
        return empty, empty
    a = np.array([points_a[i].pt for i, _ in pairs])
    b = np.array([points_b[j].pt for _, j in pairs])
    near = np.linalg.norm(a - b, axis=1) < _FOCAL * math.tan(math.radians(_PARALLAX))
    return a[near], b[near]


def _best(queries: np.ndarray, candidates: np.ndarray) -> dict[int, int]:
    matches = cv2.BFMatcher(cv2.NORM_L2).knnMatch(queries, candidates, 2)
    return {m[0].queryIdx: m[0].trainIdx for m in matches if len(m) == 2 and m[0].distance < _RATIO * m[1].distance}
