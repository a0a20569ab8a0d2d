"""The streets of a scene: one long street with bends, streets that cross it, and the ways through them.

A position on a street is given by s, the distance along its centre line, and d, the distance to the left of it, in m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

#: m between the points of a street's centre line, and between those of a way
STREET_STEP, WAY_STEP = 1.0, 0.5
#: m, a crossing street's length to either side
CROSSING_REACH = 130.0
#: m for which a street visibly continues beyond its end
EXIT = 45.0
#: m from the edge of the other street of a junction, start and end: zebra crossing, stop line
ZEBRA, STOP_LINE = (1.2, 4.2), (5.0, 5.4)
#: m, the height of the pavement and of all that lies beyond it
KERB = 0.15
#: m, cell size of the raster of s and d
CELL = 1.0
#: m from the main street up to which the raster holds s and d
REACH = 90.0


@dataclass(frozen=True)
class Street:
    """A street.

    points: [n, 3] x, y (m), heading (rad) of its centre line, one every STREET_STEP
    start: s of the first point, m
    lanes: number of lanes in each direction
    lane: width of one lane, m
    median: width of the median strip, m
    parking: width of a row of parked cars on either side, m; 0: none
    pavement: width of a pavement, m
    hand: 1 where traffic drives on the right, -1 on the left
    """

    points: np.ndarray
    start: float
    lanes: int
    lane: float
    median: float
    parking: float
    pavement: float
    hand: int

    @property
    def half_width(self) -> float:
        """Distance from the centre line to the kerb, m."""
        return self.median / 2 + self.lanes * self.lane + max(self.parking, 0.4)

    @property
    def end(self) -> float:
        """The last s, m."""
        return self.start + (len(self.points) - 1) * STREET_STEP

    def at(self, s: np.ndarray | float, d: np.ndarray | float) -> np.ndarray:
        """Return x, y (m) and the street's heading (rad) at s, d (m), [..., 3]."""
        s, d = np.broadcast_arrays(np.asarray(s, np.float64), np.asarray(d, np.float64))
        at = np.clip((s - self.start) / STREET_STEP, 0, len(self.points) - 1.001)
        i = at.astype(np.int64)
        x, y, heading = np.moveaxis(self.points[i] + (at - i)[..., None] * (self.points[i + 1] - self.points[i]), -1, 0)
        return np.stack([x - d * np.sin(heading), y + d * np.cos(heading), heading], axis=-1)

    def lane_at(self, number: int, direction: int) -> float:
        """Return the d (m) of a lane's centre.

        number: of the lane, 0 is the innermost
        direction: of travel, 1 along s, -1 against it
        """
        return -direction * self.hand * (self.median / 2 + (number + 0.5) * self.lane)

    def parking_at(self, direction: int) -> float:
        """Return the d (m) of the centre of a row of parked cars."""
        return -direction * self.hand * (self.median / 2 + self.lanes * self.lane + self.parking / 2)


@dataclass(frozen=True)
class Junction:
    """Where a street crosses the main street.

    s: position on the main street, m
    street: the crossing street; its own s is 0 here
    tee: whether the crossing street ends here
    """

    s: float
    street: Street
    tee: bool


@dataclass(frozen=True)
class Stop:
    """A stop line on a way.

    s: position on the way, m
    junction: number of the junction
    group: group of Signals that must be green
    """

    s: float
    junction: int
    group: int


@dataclass(frozen=True)
class Way:
    """The path that a vehicle or a pedestrian follows.

    points: [n, 3] x, y (m), heading (rad), one every WAY_STEP
    stops: the stop lines, in the order of s
    """

    points: np.ndarray
    stops: tuple[Stop, ...] = ()

    @property
    def length(self) -> float:
        """Length of the way, m."""
        return (len(self.points) - 1) * WAY_STEP

    def at(self, s: np.ndarray | float) -> np.ndarray:
        """Return x, y [..., 2] (m) at s; before the start and beyond the end the way continues straight on."""
        s = np.asarray(s, np.float64)
        inside = np.clip(s / WAY_STEP, 0, len(self.points) - 1.001)
        i = inside.astype(np.int64)
        xy = self.points[i, :2] + (inside - i)[..., None] * (self.points[i + 1, :2] - self.points[i, :2])
        beyond = (s - inside * WAY_STEP)[..., None]
        heading = self.points[i, 2]
        return xy + beyond * np.stack([np.cos(heading), np.sin(heading)], axis=-1)

    @property
    def bends(self) -> np.ndarray:
        """Largest curvature (1/m) within the next 8 m of each point, [n]."""
        turns = np.abs(np.diff(np.unwrap(self.points[:, 2]))) / WAY_STEP
        ahead = round(8 / WAY_STEP)
        padded = np.concatenate([turns, np.zeros(ahead)])
        return np.lib.stride_tricks.sliding_window_view(padded, ahead).max(axis=1)[: len(self.points)]


def smooth_way(xy: np.ndarray, stops: tuple[Stop, ...] = ()) -> Way:
    """Return the way along a line of points [n, 2], m."""
    steps = np.linalg.norm(np.diff(xy, axis=0), axis=1)
    xy = xy[np.concatenate([[True], steps > 1e-6])]
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(xy, axis=0), axis=1))])
    at = np.arange(0, along[-1], WAY_STEP)
    even = np.stack([np.interp(at, along, xy[:, k]) for k in (0, 1)], axis=1)
    d = np.gradient(even, axis=0)
    return Way(np.c_[even, np.unwrap(np.arctan2(d[:, 1], d[:, 0]))], stops)


@dataclass(frozen=True)
class StreetMap:
    """All streets of a scene.

    main: the main street
    junctions: where other streets cross it
    size: width and height of the map, m; one corner is at 0, 0
    seed: of the ground's pattern
    """

    main: Street
    junctions: tuple[Junction, ...]
    size: tuple[float, float]
    seed: int

    def raster(self) -> np.ndarray:
        """Return [H, W, 4] float32: s, d, cos and sin of the heading of the main street, at every CELL."""
        width, height = (math.ceil(side / CELL) + 1 for side in self.size)
        x, y = np.meshgrid(np.arange(width) * CELL, np.arange(height) * CELL)
        cells = np.stack([x.ravel(), y.ravel()], axis=1)
        points = self.main.points
        distance, nearest = cKDTree(points[:, :2]).query(cells, distance_upper_bound=REACH)
        nearest = np.minimum(nearest, len(points) - 1)
        offset = cells - points[nearest, :2]
        c, s = np.cos(points[nearest, 2]), np.sin(points[nearest, 2])
        raster = np.stack(
            [
                self.main.start + nearest * STREET_STEP + offset[:, 0] * c + offset[:, 1] * s,
                np.where(np.isfinite(distance), offset[:, 1] * c - offset[:, 0] * s, 1e3),
                c,
                s,
            ],
            axis=1,
        )
        return raster.reshape(height, width, 4).astype(np.float32)


def make_streets(rng: np.random.Generator, length: float) -> StreetMap:
    """Sample the streets of a scene whose main street is at least `length` m long."""
    hand = 1 if rng.random() < 0.6 else -1
    points = _bends(rng, length)
    lanes = int(rng.choice([1, 2, 3], p=[0.35, 0.5, 0.15]))
    median = float(rng.choice([0.0, 2.5])) if lanes > 1 else 0.0
    parking = 2.5 if rng.random() < 0.75 else 0.0
    corner = points[:, :2].min(axis=0) - (CROSSING_REACH + EXIT + 5)
    points[:, :2] -= corner
    size = points[:, :2].max(axis=0) + (CROSSING_REACH + EXIT + 5)
    main = Street(points, 0.0, lanes, rng.uniform(3.2, 3.7), median, parking, rng.uniform(2.5, 5.0), hand)
    junctions = []
    s = rng.uniform(60, 130)
    while s < main.end - 60:
        junctions.append(_crossing(rng, main, float(s)))
        s += rng.uniform(90, 190)
    return StreetMap(main, tuple(junctions), (float(size[0]), float(size[1])), int(rng.integers(1 << 30)))


def _bends(rng: np.random.Generator, length: float) -> np.ndarray:
    """Return x, y (m), heading (rad) [n, 3]: straight pieces and bends of 80 to 300 m radius, smoothly joined."""
    n = math.ceil(length / STREET_STEP) + 1
    curvature = np.zeros(n)
    at = int(rng.integers(20, 80))
    while at < n:
        run = int(rng.integers(40, 120))
        if rng.random() < 0.65:
            curvature[at : at + run] = rng.choice([-1, 1]) / rng.uniform(80, 300)
        at += run + int(rng.integers(20, 90))
    window = 25
    curvature = np.convolve(np.pad(curvature, window, mode="edge"), np.ones(window) / window, mode="same")[
        window:-window
    ]
    heading = rng.uniform(-math.pi, math.pi) + np.concatenate([[0], np.cumsum(curvature[:-1] * STREET_STEP)])
    # limit the heading: a main street that curls up would cross itself
    middle = heading[0]
    heading = middle + np.clip(heading - middle, -1.2, 1.2)
    x = np.concatenate([[0], np.cumsum(np.cos(heading[:-1]) * STREET_STEP)])
    y = np.concatenate([[0], np.cumsum(np.sin(heading[:-1]) * STREET_STEP)])
    return np.stack([x, y, heading], axis=1)


def _crossing(rng: np.random.Generator, main: Street, s: float) -> Junction:
    x, y, heading = main.at(s, 0.0)
    heading = heading + math.pi / 2 * rng.choice([-1, 1]) + rng.uniform(-0.2, 0.2)
    tee = bool(rng.random() < 0.3)
    along = np.arange(0.0 if tee else -CROSSING_REACH, CROSSING_REACH + 1e-6, STREET_STEP)
    points = np.stack([x + along * np.cos(heading), y + along * np.sin(heading), np.full(len(along), heading)], axis=1)
    lanes = int(rng.choice([1, 2], p=[0.75, 0.25]))
    parking = 2.5 if rng.random() < 0.4 else 0.0
    pavement = rng.uniform(2.0, 4.0)
    street = Street(points, float(along[0]), lanes, rng.uniform(3.1, 3.5), 0.0, parking, pavement, main.hand)
    return Junction(s, street, tee)


def way_along(street: Street, d: float, direction: int, stops: tuple[Stop, ...] = ()) -> Way:
    """Return the way at d (m) from one end of a street to the other.

    direction: of travel, 1 along s, -1 against it
    stops: stop lines on the way
    """
    s = np.arange(street.start, street.end, WAY_STEP)
    return smooth_way(street.at(s[::direction], d)[:, :2], stops)


def main_way(streets: StreetMap, lane: int, direction: int, change: tuple[float, int] | None = None) -> Way:
    """Return the way along the main street in a lane.

    lane: number of the lane, 0 is the innermost
    direction: of travel, 1 along s, -1 against it
    change: s (m) at which it changes lanes, and the number of the other lane; None stays in the lane
    """
    main = streets.main
    s = np.arange(main.start, main.end, WAY_STEP)[::direction]
    d = np.full(len(s), main.lane_at(lane, direction))
    if change is not None:
        done = np.clip((s - change[0]) * direction / 40.0, 0, 1)
        d += (main.lane_at(change[1], direction) - d) * (done * done * (3 - 2 * done))
    xy = main.at(s, d)[:, :2]
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(xy, axis=0), axis=1))])
    stops = []
    for number, junction in enumerate(streets.junctions):
        line = junction.s - direction * (junction.street.half_width + STOP_LINE[1] + 0.4)
        stops.append(Stop(float(np.interp(line * direction, s * direction, along)), number, 0))
    return smooth_way(xy, tuple(sorted(stops, key=lambda stop: stop.s)))


def crossing_way(streets: StreetMap, number: int, lane: int, direction: int) -> Way:
    """Return the way along a crossing street; a street that ends at the main street is only followed away from it.

    number: of the junction
    lane: number of the lane, 0 is the innermost
    direction: of travel, 1 along s, -1 against it
    """
    street = streets.junctions[number].street
    line = -street.start if direction > 0 else street.end
    stop = Stop(line - (streets.main.half_width + STOP_LINE[1] + 0.4), number, 2)
    return way_along(street, street.lane_at(lane, direction), direction, (stop,))


def turning_way(streets: StreetMap, number: int, direction: int, exit_direction: int, onto_main: bool) -> Way | None:
    """Return the way from one street into another; None if the junction has no such arm.

    number: of the junction
    direction: of travel on the street that it comes from, 1 along s, -1 against it
    exit_direction: of travel on the street that it turns into
    onto_main: whether it turns from the crossing street into the main street; else the other way round
    """
    junction = streets.junctions[number]
    main, street = streets.main, junction.street
    gap = 3.5
    if junction.tee and ((not onto_main and exit_direction < 0) or (onto_main and direction > 0)):
        return None
    near = _is_near_turn(streets, number, direction, exit_direction, onto_main)
    source, target = (street, main) if onto_main else (main, street)
    enter = (0.0 if onto_main else junction.s) - direction * (target.half_width + gap)
    leave = (junction.s if onto_main else 0.0) + exit_direction * (source.half_width + gap)
    d_in = source.lane_at(source.lanes - 1 if near else 0, direction)
    d_out = target.lane_at(target.lanes - 1 if near else 0, exit_direction)
    before = np.arange(enter, source.start if direction > 0 else source.end, -direction * WAY_STEP)[::-1]
    after = np.arange(leave, target.end if exit_direction > 0 else target.start, exit_direction * WAY_STEP)
    if len(before) < 2 or len(after) < 2:
        return None
    head, tail = source.at(before, d_in)[:, :2], target.at(after, d_out)[:, :2]
    turn = _bezier(head[-1], head[-1] - head[-2], tail[0], tail[1] - tail[0])
    length = float(np.linalg.norm(np.diff(head, axis=0), axis=1).sum())
    stop = Stop(length - (STOP_LINE[1] + 0.4 - gap), number, (2 if onto_main else 0) + (0 if near else 1))
    stops = [stop]
    if not onto_main:  # stop lines of the junctions before this one
        ahead = [j for k, j in enumerate(streets.junctions) if (junction.s - j.s) * direction > 1]
        for other in ahead:
            line = other.s - direction * (other.street.half_width + STOP_LINE[1] + 0.4)
            place = length - abs(enter - line)
            if place > 0:
                stops.append(Stop(place, streets.junctions.index(other), 0))
    return smooth_way(np.concatenate([head, turn[1:-1], tail]), tuple(sorted(stops, key=lambda s: s.s)))


def _is_near_turn(streets: StreetMap, number: int, direction: int, exit_direction: int, onto_main: bool) -> bool:
    """Return whether a turn does not cross the oncoming traffic: a right turn where traffic drives on the right."""
    junction = streets.junctions[number]
    main_heading = streets.main.at(junction.s, 0.0)[2]
    across = junction.street.points[0, 2]
    into, out = (across, main_heading) if onto_main else (main_heading, across)
    into, out = (h + (0 if way > 0 else math.pi) for h, way in ((into, direction), (out, exit_direction)))
    return bool(math.sin(out - into) * streets.main.hand < 0)


def _bezier(a: np.ndarray, along_a: np.ndarray, b: np.ndarray, along_b: np.ndarray) -> np.ndarray:
    """Return a cubic Bezier curve [n, 2] from a to b that starts and ends in the given directions."""
    reach = 0.5 * np.linalg.norm(b - a)
    p1 = a + along_a / np.linalg.norm(along_a) * reach
    p2 = b - along_b / np.linalg.norm(along_b) * reach
    t = np.linspace(0, 1, 40)[:, None]
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * b
