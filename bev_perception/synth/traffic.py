"""Traffic simulation: vehicles follow one another and stop for red lights and people; people keep to the pavements.

Car following: the Intelligent Driver Model (Treiber, Hennecke and Helbing, Phys. Rev. E 62, 2000).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from bev_perception.synth.compiled import hot, kernel
from bev_perception.synth.roads import EXIT, WAY_STEP, Stop, Way

#: s, step of the simulation, and time that is simulated before the scene starts
STEP, WARM_UP = 0.05, 8.0
#: m, distances ahead at which a driver looks for others
_LOOK = np.concatenate([np.arange(0.0, 12.0, 1.0), np.arange(12.0, 46.0, 2.0)])
#: Intelligent Driver Model: acceleration, braking (m/s^2), headway (s), gap at rest (m)
_ACCELERATION, _BRAKING, _HEADWAY, _REST_GAP = 1.6, 2.2, 1.3, 2.2
_HARDEST = 6.0  # m/s^2, hardest braking
#: m, x and y of those who have left the streets
_GONE = -1e4
_SIDEWAYS = 2.2  # m/s^2, lateral acceleration that drivers accept in a bend


@dataclass(frozen=True)
class Signals:
    """The traffic lights of a junction: groups 0 to 3 are green one after the other.

    Groups are 0 main street ahead, 1 main street turning across the oncoming traffic, 2 and 3 the same of the crossing
    street.

    starts: [4] time within the cycle at which each group's green begins, s
    greens: [4] duration of each group's green, s
    cycle: duration of the cycle, s
    phase: time within the cycle when the scene starts, s
    """

    starts: np.ndarray
    greens: np.ndarray
    cycle: float
    phase: float

    def green(self, group: int, time: float) -> bool:
        """Return whether a group may go at a time (s)."""
        at = (time + self.phase - self.starts[group]) % self.cycle
        return bool(at < self.greens[group])

    def green_from(self, group: int, time: float) -> Signals:
        """Return the same timing, shifted so that a group may go from a time (s) on."""
        return replace(self, phase=float(self.starts[group] - time))


def make_all_signals(rng: np.random.Generator, junctions: int, turn: tuple[Stop, float] | None) -> list[Signals]:
    """Sample the signal timing of all junctions.

    junctions: number of junctions
    turn: a stop line, and the time (s) at which it is to be green; None for no such condition
    """
    signals = [make_signals(rng) for _ in range(junctions)]
    if turn is not None:
        stop, time = turn
        signals[stop.junction] = signals[stop.junction].green_from(stop.group, time - 1.0)
    return signals


def make_signals(rng: np.random.Generator) -> Signals:
    """Sample the signal timing of a junction."""
    main = rng.uniform(7, 12) if rng.random() < 0.3 else rng.uniform(25, 50)
    greens = np.array([main, rng.uniform(3.5, 5), rng.uniform(5, 8), rng.uniform(3.5, 5)])
    clearance = 2.0
    starts = np.concatenate([[0], np.cumsum(greens[:-1] + clearance)])
    cycle = float((greens + clearance).sum())
    return Signals(starts, greens, cycle, float(rng.uniform(0, cycle)))


@dataclass(frozen=True)
class Agent:
    """Somebody on a way.

    way: the path to follow
    s: initial position of the front end, m
    speed: wanted speed, m/s
    length: m
    width: m
    walks: whether this is a pedestrian, who heeds traffic lights but nobody else
    """

    way: Way
    s: float
    speed: float
    length: float
    width: float
    walks: bool = False


class Ways(NamedTuple):
    """Everybody's way in one array.

    points: [M, 3] x, y (m), heading (rad)
    starts: [n + 1] where each way begins
    bends: [M] the largest curvature soon to come, 1/m
    """

    points: np.ndarray
    starts: np.ndarray
    bends: np.ndarray


class Fleet(NamedTuple):
    """How agents have moved.

    ways: of all agents
    traces: [n, steps + 1] position s of each on its way at every STEP, from -WARM_UP on, m
    """

    ways: Ways
    traces: np.ndarray

    def s_at(self, time: float) -> np.ndarray:
        """Return s [n] (m) of all front ends at a time (s) of the scene; after the last step nobody moves."""
        at = min(max((time + WARM_UP) / STEP, 0.0), self.traces.shape[1] - 1.001)
        i = int(at)
        return self.traces[:, i] + (at - i) * (self.traces[:, i + 1] - self.traces[:, i])

    def speeds_at(self, time: float) -> np.ndarray:
        """Return everybody's speed [n] (m/s) at a time (s) of the scene."""
        return (self.s_at(time + STEP) - self.s_at(time - STEP)) / (2 * STEP)


@kernel
def places_on(ways: Ways, s: np.ndarray, agents: np.ndarray, behind: np.ndarray, axles: np.ndarray) -> np.ndarray:
    """Return x, y (m), yaw (rad) [m, 3] of bodies whose two axles are on their agents' ways.

    Bodies that have left the streets are placed far out of sight.

    s: [n] of all front ends, m
    agents: [m] agent of each body
    behind: [m] distance from the front end back to the body's origin, m
    axles: [m, 2] x of rear and front axle, m
    """
    places = np.empty((len(agents), 3))
    for i in range(len(agents)):
        agent, origin = agents[i], s[agents[i]] - behind[i]
        if origin > (ways.starts[agent + 1] - ways.starts[agent]) * WAY_STEP + EXIT:
            places[i, 0], places[i, 1], places[i, 2] = _GONE, _GONE, 0.0
            continue
        rear, front = axles[i, 0], axles[i, 1]
        if front - rear < 0.1:  # no axles: a pedestrian, who faces ahead
            rear, front = -0.2, 0.2
        x0, y0, _ = _place(ways, agent, origin + rear)
        x1, y1, _ = _place(ways, agent, origin + front)
        yaw = math.atan2(y1 - y0, x1 - x0)
        places[i, 0], places[i, 1], places[i, 2] = x0 - rear * math.cos(yaw), y0 - rear * math.sin(yaw), yaw
    return places


class _Bodies(NamedTuple):
    """Size and behaviour of all agents.

    length: [n] m
    width: [n] m
    wanted: [n] speed, m/s
    walks: [n] bool, pedestrians
    """

    length: np.ndarray
    width: np.ndarray
    wanted: np.ndarray
    walks: np.ndarray


def simulate(agents: list[Agent], signals: list[Signals], seconds: float) -> Fleet:
    """Simulate all agents from WARM_UP before the start of the scene to its end.

    signals: one per junction
    seconds: length of the scene, s
    """
    steps = math.ceil((WARM_UP + seconds + 1.0) / STEP)
    starts = np.concatenate([[0], np.cumsum([len(a.way.points) for a in agents])])
    ways = Ways(np.concatenate([a.way.points for a in agents]), starts, np.concatenate([a.way.bends for a in agents]))
    bodies = _Bodies(
        np.array([a.length for a in agents]),
        np.array([a.width for a in agents]),
        np.array([a.speed for a in agents]),
        np.array([a.walks for a in agents]),
    )
    s, v = np.array([a.s for a in agents], np.float64), 0.8 * bodies.wanted
    traces = np.empty((len(agents), steps + 1))
    traces[:, 0] = s
    for step in range(steps):
        time = step * STEP - WARM_UP
        lines = np.array([_red_line(a, s[i], v[i], signals, time) for i, a in enumerate(agents)])
        s, v = _advance(ways, bodies, s, v, lines)
        traces[:, step + 1] = s
    return Fleet(ways, traces)


@hot
def _place(ways: Ways, i: int, s: float) -> tuple[float, float, float]:
    """Return x, y (m), heading (rad) at s (m) on agent i's way; beyond its ends the way continues straight on."""
    first, count = ways.starts[i], ways.starts[i + 1] - ways.starts[i]
    inside = min(max(s / WAY_STEP, 0.0), count - 1.001)
    k = int(inside)
    a, b = ways.points[first + k], ways.points[first + k + 1]
    beyond, share = s - inside * WAY_STEP, inside - k
    x, y = a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])
    return x + beyond * math.cos(a[2]), y + beyond * math.sin(a[2]), a[2]


@kernel
def _advance(
    ways: Ways, bodies: _Bodies, s: np.ndarray, v: np.ndarray, lines: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return everybody's s (m) and speed (m/s) one STEP later.

    s: [n] of the front ends, m
    v: [n] speeds, m/s
    lines: [n] distance to the line at which each must stop, m
    """
    n = len(s)
    owners, middles = np.empty(n * 12, np.int64), np.empty((n * 12, 3))
    count = 0
    for j in range(n):
        circles = min(max(1, round(bodies.length[j] / 2.0)), 12)
        for k in range(circles):
            x, y, _ = _place(ways, j, s[j] - bodies.length[j] * (k + 0.5) / circles)
            middles[count, 0], middles[count, 1], owners[count] = x, y, j
            middles[count, 2] = bodies.width[j] / 2 + (0.5 if bodies.walks[j] else 0.1)
            count += 1
    next_s, next_v = s.copy(), v.copy()
    for i in range(n):
        gap, lead = (200.0, 0.0) if bodies.walks[i] else _gap(ways, bodies, i, s, v, owners[:count], middles[:count])
        if lines[i] < gap:
            gap, lead = lines[i], 0.0
        next_v[i] = max(0.0, v[i] + _acceleration(ways, bodies, i, s[i], v[i], gap, lead) * STEP)
        next_s[i] = s[i] + next_v[i] * STEP
    return next_s, next_v


@hot
def _acceleration(ways: Ways, bodies: _Bodies, i: int, s: float, v: float, gap: float, lead: float) -> float:
    wanted, walks = bodies.wanted[i], bodies.walks[i]
    if not walks:
        count = ways.starts[i + 1] - ways.starts[i]
        bend = ways.bends[ways.starts[i] + min(max(int(s / WAY_STEP), 0), count - 1)]
        wanted = min(wanted, math.sqrt(_SIDEWAYS / max(bend, 1e-4)))
    pace, rest, headway = (0.8, 0.3, 0.3) if walks else (_ACCELERATION, _REST_GAP, _HEADWAY)
    desired = rest + max(0.0, v * headway + v * (v - lead) / (2 * math.sqrt(_ACCELERATION * _BRAKING)))
    free = 1 - (v / max(wanted, 0.1)) ** 4
    return max(pace * (free - (desired / max(gap, 0.1)) ** 2), -_HARDEST)


@kernel
def _gap(
    ways: Ways, bodies: _Bodies, i: int, s: np.ndarray, v: np.ndarray, owners: np.ndarray, middles: np.ndarray
) -> tuple[float, float]:
    """Return the free distance (m) ahead of vehicle i, and the speed (m/s) along its way of the body that ends it.

    s, v: [n] of all agents, m and m/s
    owners: [c] agent of each of the circles that cover the bodies
    middles: [c, 3] x, y, radius of the circles, m
    """
    x0, y0, _ = _place(ways, i, s[i])
    near = np.empty(len(owners), np.int64)
    found = 0
    for c in range(len(owners)):
        if owners[c] != i and abs(middles[c, 0] - x0) < 50 and abs(middles[c, 1] - y0) < 50:
            near[found] = c
            found += 1
    for look in _LOOK:
        x, y, heading = _place(ways, i, s[i] + look)
        closest, who = 1e9, -1
        for k in range(found):
            c = near[k]
            apart = math.hypot(middles[c, 0] - x, middles[c, 1] - y) - middles[c, 2]
            if apart < closest:
                closest, who = apart, owners[c]
        if who >= 0 and closest < bodies.width[i] / 2 + 0.15:
            _, _, other = _place(ways, who, s[who])
            return max(look - 0.3, 0.05), max(0.0, v[who] * math.cos(other - heading))
    return 200.0, 0.0


def _red_line(agent: Agent, s: float, v: float, signals: list[Signals], time: float) -> float:
    """Return the distance (m) to the next stop line at which the agent must stop now, 1000 if there is none."""
    for stop in agent.way.stops:
        distance = stop.s - s
        if distance < -0.5:
            continue
        if distance > 45:
            break
        if signals[stop.junction].green(stop.group, time) or distance < v * v / (2 * 4.0) - 0.5:
            continue
        # drivers stop _REST_GAP before an obstacle: put it beyond the line, so that the nose stops at the line
        return max(distance + _REST_GAP - 0.4, 0.1) if not agent.walks else max(distance + 0.3, 0.05)
    return 1e3
