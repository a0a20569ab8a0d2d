"""Whether the pictures move as the odometry says: direction, turning, scale, and the time between the two."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from bev_perception.geometry import invert_transform, yaw_from_rotation
from bev_perception.rig.description import Rig, RigCamera
from bev_perception.rig.findings import FAIL, OK, WARN, Finding, grade, judged
from bev_perception.rig.projection import rays_of
from bev_perception.rig.recording import Picture, PoseTrack, Recording

#: width that pictures are tracked at, pixels
_WIDTH = 800
#: tracked points that a pair of pictures needs
POINTS = 40
#: pairs of pictures that a judgement needs
PAIRS = 4
#: m that the vehicle must move between two pictures for a direction of motion
MOVED = 0.15
#: degrees between the directions of motion by pictures and by odometry
DIRECTION, WRONG_DIRECTION = 8.0, 25.0
#: ratio of lengths by ground points and by odometry
SCALE, WRONG_SCALE = 1.25, 1.8
#: rad/s; standard deviation of the odometry's turning that a judgement of it needs
TURNING = 0.02
#: s; time offsets that are tried, their step, and the offsets that matter
_OFFSETS, _OFFSET_STEP = 0.5, 0.01
OFFSET, WRONG_OFFSET = 0.05, 0.2
#: by how much the best offset must lower the disagreement for it to be believed
_CLEARLY = 0.6


@dataclass(frozen=True)
class SeenMotion:
    """The motion of a camera between two pictures, as the pictures tell it.

    start: ns, stamp of the first picture
    end: ns, stamp of the second picture
    rotation: [3, 3], directions in base_link at `start` to those at `end`
    direction: [3], unit vector of the camera's way in base_link at `start`; only its sign and direction are known
    ground: [n] ratios of the way by points on the ground to that by odometry; empty without odometry or ground
    """

    start: int
    end: int
    rotation: np.ndarray
    direction: np.ndarray
    ground: np.ndarray

    @property
    def turning(self) -> float:
        """Rate of turning, rad/s, counter-clockwise."""
        return -yaw_from_rotation(self.rotation) / ((self.end - self.start) / 1e9)


def check_motion(recording: Recording) -> Iterator[Finding]:
    """Yield, for each camera, how its pictures' motion agrees with the odometry."""
    if len(recording.poses.stamps) < 2:
        return
    for camera in recording.rig.complete:
        pairs = recording.pairs.get(camera.name, ())
        seen = [m for pair in pairs if (m := see_motion(recording.rig, camera, pair, recording.poses)) is not None]
        yield from judge_motion(camera, seen, recording.poses)


def judge_motion(camera: RigCamera, seen: Sequence[SeenMotion], poses: PoseTrack) -> Iterator[Finding]:
    """Yield the findings about one camera, from its seen motions."""
    yield _direction(camera, seen, poses)
    yield _scale(camera.name, seen)
    yield _turning(camera.name, seen, poses)


# ---- pictures ----


def see_motion(rig: Rig, camera: RigCamera, pair: tuple[Picture, Picture], poses: PoseTrack) -> SeenMotion | None:
    """Return the motion between two pictures of a camera; None if too few points can be tracked."""
    assert camera.calibration is not None and camera.sensor2ego is not None
    before, after = track_points(pair[0].gray, pair[1].gray)
    if len(before) < POINTS:
        return None
    rays_a, rays_b = rays_of(camera.calibration, before), rays_of(camera.calibration, after)
    ahead = (rays_a[:, 2] > 0.1) & (rays_b[:, 2] > 0.1)
    return motion_of_rays(rig, camera, (rays_a[ahead], rays_b[ahead]), (pair[0].stamp, pair[1].stamp), poses)


def track_points(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels [n, 2], [n, 2] of corners that are followed from one picture to the next, and back."""
    scale = min(1.0, _WIDTH / first.shape[1])
    small = [cv2.resize(p, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for p in (first, second)]
    corners = cv2.goodFeaturesToTrack(small[0], 300, 0.005, 8)
    if corners is None:
        return np.zeros((0, 2)), np.zeros((0, 2))
    there, found, _ = cv2.calcOpticalFlowPyrLK(
        small[0], small[1], corners, corners.copy(), winSize=(21, 21), maxLevel=4
    )
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(
        small[1], small[0], there, there.copy(), winSize=(21, 21), maxLevel=4
    )
    near = np.linalg.norm((back - corners).reshape(-1, 2), axis=1) < 0.5
    good = (found.ravel() == 1) & (found_back.ravel() == 1) & near
    middle = (1 - scale) / 2  # the middle of a pixel has integer coordinates
    first_points, second_points = ((p.reshape(-1, 2)[good] + middle) / scale for p in (corners, there))
    return first_points, second_points


def motion_of_rays(
    rig: Rig, camera: RigCamera, rays: tuple[np.ndarray, np.ndarray], stamps: tuple[int, int], poses: PoseTrack
) -> SeenMotion | None:
    """Return the motion that unit rays [n, 3], [n, 3] of the same points tell; None if they do not tell one."""
    if len(rays[0]) < POINTS:
        return None
    before, after = (r[:, :2] / r[:, 2:] for r in rays)
    essential, inliers = cv2.findEssentialMat(
        before, after, np.eye(3), method=cv2.RANSAC, prob=0.999, threshold=1.5e-3, maxIters=200
    )
    if essential is None or essential.shape != (3, 3):
        return None
    _, rotation, translation, _ = cv2.recoverPose(essential, before, after, np.eye(3), mask=inliers.copy())
    assert camera.sensor2ego is not None
    turn = camera.sensor2ego[:3, :3]
    # recoverPose gives first2second: the camera itself went the other way
    way = -turn @ rotation.T @ translation.ravel()
    kept = inliers.ravel() > 0
    ground = _ground_ratios(rig, camera, (rays[0][kept], rays[1][kept]), stamps, poses)
    return SeenMotion(stamps[0], stamps[1], turn @ rotation @ turn.T, way / np.linalg.norm(way), ground)


def _ground_ratios(
    rig: Rig, camera: RigCamera, rays: tuple[np.ndarray, np.ndarray], stamps: tuple[int, int], poses: PoseTrack
) -> np.ndarray:
    """Return the way by each point [n] that may lie on the ground, divided by that of the odometry.

    A point is taken to be where its ray meets the ground, at both times. Points above the ground seem to be farther
    away than they are; the median of many near ones is of the ground where a road is in view.
    """
    assert camera.sensor2ego is not None
    start2end = _odometry(poses, *stamps)
    height = float(camera.sensor2ego[2, 3]) + rig.base_height
    if start2end is None or np.linalg.norm(start2end[:3, 3]) < MOVED or height <= 0:
        return np.zeros(0)
    places, near = [], np.ones(len(rays[0]), bool)
    for directions in rays:
        turned = directions @ camera.sensor2ego[:3, :3].T  # in base_link
        near &= turned[:, 2] < -math.sin(math.radians(8.0))  # within 10 m for a camera at 1.5 m
        with np.errstate(divide="ignore", invalid="ignore"):
            places.append(turned * (-height / turned[:, 2:]) + camera.sensor2ego[:3, 3])
    if near.sum() < 8:
        return np.zeros(0)
    start, end = places[0][near], places[1][near]
    # what stands moves, in base_link, by start2end; without its turning, all by the same way
    turned = start @ start2end[:3, :3].T
    way = (end - turned)[:, :2]
    wanted = start2end[:2, 3]
    return way @ wanted / float(wanted @ wanted)


def _odometry(poses: PoseTrack, start: float, end: float) -> np.ndarray | None:
    """Return the transform [4, 4] from base_link at `start` (ns) to base_link at `end`; None without a pose."""
    first, second = poses.at(start), poses.at(end)
    return None if first is None or second is None else invert_transform(second) @ first


# ---- judging ----


def _direction(camera: RigCamera, seen: Sequence[SeenMotion], poses: PoseTrack) -> Finding:
    assert camera.sensor2ego is not None
    angles, signed = [], []
    for motion in seen:
        start2end = _odometry(poses, motion.start, motion.end)
        if start2end is None:
            continue
        mount = camera.sensor2ego[:3, 3]
        way = invert_transform(start2end)[:3, :3] @ mount + invert_transform(start2end)[:3, 3] - mount
        if np.linalg.norm(way) < MOVED:
            continue
        way /= np.linalg.norm(way)
        angles.append(math.degrees(math.acos(float(np.clip(way @ motion.direction, -1.0, 1.0)))))
        turned = math.atan2(motion.direction[1], motion.direction[0]) - math.atan2(way[1], way[0])
        signed.append(math.degrees(math.remainder(turned, 2 * math.pi)))
    name = "direction of motion"
    if len(angles) < PAIRS:
        return Finding(
            name, camera.name, OK, f"not judged: {len(angles)} pairs of pictures tell it, {PAIRS} are needed"
        )
    angle = float(np.median(angles))
    figure = f"{angle:.0f} degrees from the odometry's, median of {len(angles)} pairs"
    level = grade(angle, DIRECTION, WRONG_DIRECTION)
    remedy = (
        "the odometry runs backwards, or tf gives its inverse"
        if angle > 150
        else f"the camera seems to be turned by {-float(np.median(signed)):+.0f} degrees about the vertical compared "
        "with tf, or topics of two cameras are mixed up"
    )
    return judged(name, camera.name, level, figure, remedy)


def _scale(name: str, seen: Sequence[SeenMotion]) -> Finding:
    medians = [float(np.median(motion.ground)) for motion in seen if len(motion.ground) >= 8]
    if len(medians) < PAIRS:
        return Finding("scale of motion", name, OK, f"not judged: the ground is seen in {len(medians)} pairs")
    scale = float(np.median(medians))
    figure = f"points on the ground move {scale:.2f} times as far as the odometry says"
    level = grade(max(scale, 1 / scale) if scale > 0 else math.inf, SCALE, WRONG_SCALE)
    remedy = (
        "the camera's height or pitch in tf, or the scale of the odometry (km/h for m/s?) is wrong; "
        "if base_link is above the ground, say so with --base-height"
    )
    return judged("scale of motion", name, level, figure, remedy)


def _turning(name: str, seen: Sequence[SeenMotion], poses: PoseTrack) -> Finding:
    check = "turning and time offset"
    times = np.array([(m.start, m.end) for m in seen], np.int64).reshape(-1, 2)
    by_pictures = np.array([m.turning for m in seen])
    by_odometry = odometry_turning(poses, times, 0.0)
    known = np.isfinite(by_odometry)
    if known.sum() < 2 * PAIRS or float(np.std(by_odometry[known])) < TURNING:
        figure = "not judged: the recording has too little change of turning; drive a few curves"
        return Finding(check, name, OK, figure)
    offset, slope, certain = fit_offset(by_pictures, times, poses)
    figure = f"pictures turn {slope:.2f} times as fast as the odometry"
    if slope < 0.3:
        remedy = "turns the other way" if slope < -0.3 else "the two have nothing to do with each other"
        remedy += ": check the sign of the odometry's yaw, and whether tf gives base_link in the world or the inverse"
        return Finding(check, name, FAIL if slope < -0.3 else WARN, figure, remedy)
    if not certain:
        return Finding(check, name, OK, f"{figure}; the time offset cannot be told")
    figure += f", and {1e3 * abs(offset):.0f} ms {'after' if offset < 0 else 'before'} it by their stamps"
    level = grade(abs(offset), OFFSET, WRONG_OFFSET)
    remedy = (
        f"the camera's stamps are {1e3 * abs(offset):.0f} ms {'late' if offset < 0 else 'early'} compared with those "
        "of the odometry: stamp the middle of the exposure, or synchronise the clocks"
    )
    return judged(check, name, level, figure, remedy)


def odometry_turning(poses: PoseTrack, times: np.ndarray, offset: float) -> np.ndarray:
    """Return the mean rate of turning [n] (rad/s) in intervals [n, 2] (ns), `offset` s later; NaN without poses."""
    rates = np.full(len(times), np.nan)
    for i, (start, end) in enumerate(times + round(offset * 1e9)):
        start2end = _odometry(poses, float(start), float(end))
        if start2end is not None:
            rates[i] = -yaw_from_rotation(start2end) / ((end - start) / 1e9)
    return rates


def fit_offset(by_pictures: np.ndarray, times: np.ndarray, poses: PoseTrack) -> tuple[float, float, bool]:
    """Return the time offset (s), the slope and whether the offset is certain.

    The odometry `offset` s after a picture's stamp agrees best with what the picture shows.

    by_pictures: [n] rates of turning, rad/s
    times: [n, 2] ns, the intervals that they were seen in
    """
    offsets = np.arange(-_OFFSETS, _OFFSETS + _OFFSET_STEP / 2, _OFFSET_STEP)
    costs, slopes = [], []
    for offset in offsets:
        rates = odometry_turning(poses, times, float(offset))
        known = np.isfinite(rates)
        if known.sum() < max(PAIRS, 0.6 * len(times)):
            costs.append(np.inf)
            slopes.append(np.nan)
            continue
        x, y = rates[known], by_pictures[known]
        slope = _robust_slope(x, y)
        costs.append(float(np.median(np.abs(y - slope * x))) + 1e-4)
        slopes.append(slope)
    cost = np.array(costs)
    best = int(np.argmin(cost))
    far = np.abs(offsets - offsets[best]) > 0.1
    others = cost[far & np.isfinite(cost)]
    certain = len(others) > 0 and cost[best] < _CLEARLY * float(others.min())
    at_zero = int(np.argmin(np.abs(offsets)))
    slope = slopes[best] if certain else slopes[at_zero]
    return float(offsets[best]), float(slope), bool(certain)


def _robust_slope(x: np.ndarray, y: np.ndarray) -> float:
    """Return the slope of y over x through the origin; outliers count little (iteratively reweighted)."""
    weights = np.ones(len(x))
    slope = 0.0
    for _ in range(5):
        slope = float((weights * x * y).sum() / max((weights * x * x).sum(), 1e-12))
        rest = np.abs(y - slope * x)
        weights = 1 / np.maximum(rest, 0.2 * float(np.median(rest)) + 1e-4)
    return slope
