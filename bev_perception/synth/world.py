"""A whole scene as a function of time: streets, things, light, and the ego car."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bev_perception.geometry import make_transform
from bev_perception.synth.crowd import EGO_AXLES, EGO_NOSE, EGO_SIZE, Spawner
from bev_perception.synth.ground import Ground, heights_at, make_ground
from bev_perception.synth.polygons import Poses
from bev_perception.synth.roads import StreetMap, make_streets
from bev_perception.synth.scenery import Scenery
from bev_perception.synth.shading import Light, make_light
from bev_perception.synth.shapes import Material, Part, Shape, Surface, block
from bev_perception.synth.solids import Solids, Swings, flatten
from bev_perception.synth.things import Thing
from bev_perception.synth.traffic import Fleet, Signals, make_all_signals, places_on, simulate

#: rad of pitch and roll per m/s^2 of acceleration
_TILT = 0.006
#: m that a pedestrian walks in one cycle
STRIDE = 1.4
#: brightness of a lamp that is off, as a share of one that is on
_UNLIT = 0.13


class _Movers(NamedTuple):
    """The objects that move, the ego car last.

    objects: their numbers
    agents, behind, axles: as in traffic.places_on
    """

    objects: np.ndarray
    agents: np.ndarray
    behind: np.ndarray
    axles: np.ndarray


@dataclass(frozen=True)
class World:
    """A scene. Times are s from its start.

    weather: its name
    things: all objects but the ego car, in the order of the objects in Solids
    solids: the hulls of all objects; the last object is the ego car, which is only there for its shadow
    signals: one per junction
    fleet: the movements of all agents
    """

    streets: StreetMap
    ground: Ground
    light: Light
    weather: str
    things: tuple[Thing, ...]
    solids: Solids
    signals: tuple[Signals, ...]
    fleet: Fleet
    _movers: _Movers
    _at_rest: np.ndarray
    _swings: Swings
    _lamps: np.ndarray  # [n, 4] face, junction, group, colour (0 green, 1 amber, 2 red) of each lamp

    def ego2global(self, time: float) -> np.ndarray:
        """Return the pose [4, 4] of the ego car's rear axle on the ground; the car pitches and rolls a little."""
        span = 0.25
        (x0, y0, yaw0), (x, y, yaw), (x1, y1, yaw1) = (self._ego_at(time + lag).tolist() for lag in (-span, 0.0, span))
        before, after = math.hypot(x - x0, y - y0) / span, math.hypot(x1 - x, y1 - y) / span
        speed, turn = (before + after) / 2, math.remainder(yaw1 - yaw0, 2 * math.pi) / (2 * span)
        shake = min(speed / 8, 1.0) * 0.0015
        pitch = -_TILT * (after - before) / span + shake * math.sin(9.1 * time + 1.0)
        roll = _TILT * speed * turn + shake * math.sin(7.3 * time)
        return make_transform(_rotation(roll, pitch, yaw), np.array([x, y, 0.0]))

    def _ego_at(self, time: float) -> np.ndarray:
        ways, s = self.fleet.ways, self.fleet.s_at(time)
        return places_on(ways, s, np.zeros(1, np.int64), np.array([EGO_NOSE]), np.array([EGO_AXLES]))[0]

    def places_at(self, time: float) -> np.ndarray:
        """Return x, y, z (m), yaw (rad) [O, 4] of all objects at a time (s), the ego car last."""
        places, movers = self._at_rest.copy(), self._movers
        moved = places_on(self.fleet.ways, self.fleet.s_at(time), movers.agents, movers.behind, movers.axles)
        places[movers.objects, 0], places[movers.objects, 1] = moved[:, 0], moved[:, 1]
        places[movers.objects, 2], places[movers.objects, 3] = heights_at(self.ground, moved), moved[:, 2]
        return places

    def speeds_at(self, time: float) -> np.ndarray:
        """Return the speeds [O] (m/s) of all objects at a time (s)."""
        speeds = np.zeros(len(self._at_rest))
        speeds[self._movers.objects] = self.fleet.speeds_at(time)[self._movers.agents]
        return speeds

    def poses_at(self, time: float) -> Poses:
        """Return the poses of all parts at a time (s)."""
        places, owner = self.places_at(time), self.solids.part_object
        c, s = np.cos(places[:, 3]), np.sin(places[:, 3])
        turns = np.zeros((len(places), 3, 3))
        turns[:, 0, 0], turns[:, 0, 1], turns[:, 1, 0], turns[:, 1, 1], turns[:, 2, 2] = c, -s, s, c, 1
        rotations, translations = turns[owner], places[owner, :3]
        parts, pivots, amplitudes, phases = self._swings
        strides, speeds = np.zeros(len(places)), self.speeds_at(time)
        strides[self._movers.objects] = 2 * np.pi / STRIDE * self.fleet.s_at(time)[self._movers.agents]
        pace = np.clip(speeds / 0.8, 0, 1)  # a pedestrian who stands has the feet together
        angles = amplitudes * pace[owner[parts]] * np.sin(strides[owner[parts]] + phases)
        c, s = np.cos(angles), np.sin(angles)
        swing = np.zeros((len(parts), 3, 3))
        swing[:, 0, 0], swing[:, 0, 2], swing[:, 2, 0], swing[:, 2, 2], swing[:, 1, 1] = c, s, -s, c, 1
        shift = pivots - np.einsum("nij,nj->ni", swing, pivots)
        translations[parts] += np.einsum("nij,nj->ni", rotations[parts], shift)
        rotations[parts] = rotations[parts] @ swing
        return Poses(rotations, translations)

    def solids_at(self, time: float) -> Solids:
        """Return the solids with the traffic lights as they are at a time (s)."""
        colors = self.solids.colors.copy()
        for face, junction, group, color in self._lamps:
            green = self.signals[junction].green(group, time)
            lit = green if color == 0 else not green if color == 2 else False
            colors[face] *= 1.0 if lit else _UNLIT
        return self.solids._replace(colors=colors)


def _rotation(roll: float, pitch: float, yaw: float) -> np.ndarray:
    cr, sr, cp, sp, cy, sy = (f(a) for a in (roll, pitch, yaw) for f in (math.cos, math.sin))
    z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    return z @ y @ x


def make_world(seed: tuple[int, ...], seconds: float, kinds: Sequence[str] = ()) -> World:
    """Return the scene of a seed, simulated for `seconds`.

    kinds: of light and weather to draw from, see make_light
    """
    rng = np.random.default_rng(seed)
    streets = make_streets(rng, 13.0 * seconds + 260)
    ground = make_ground(streets, rng)
    light, weather = make_light(rng, kinds)
    scenery = Scenery(rng, streets, ground)
    crowd = float(rng.uniform(0, 1)) * (0.5 if weather == "rain" else 1.0)

    lights = scenery.put_up_signals()
    sites = _work_sites(rng, streets, scenery)
    scenery.build_houses()
    scenery.park(sites)
    if rng.random() < 0.6:
        scenery.barrier_row()
    scenery.plant()
    scenery.populate(crowd)

    spawner = Spawner(rng, streets, seconds)
    spawner.put_ego()
    spawner.put_vehicles(float(rng.uniform(0.5, 2.2)))
    spawner.put_walkers(crowd, weather == "rain")
    signals = make_all_signals(rng, len(streets.junctions), spawner.turn)
    fleet = simulate(spawner.agents, signals, seconds)

    things = [*scenery.things, *spawner.things]
    solids, swings = flatten([*(thing.shape for thing in things), _ego_shape()])
    return World(
        streets=streets,
        ground=ground,
        light=light,
        weather=weather,
        things=tuple(things),
        solids=solids,
        signals=tuple(signals),
        fleet=fleet,
        _movers=_movers_of(things),
        _at_rest=np.array([thing.place for thing in things] + [(0, 0, 0, 0)], np.float64),
        _swings=swings,
        _lamps=_lamps_of(solids, lights),
    )


def _movers_of(things: list[Thing]) -> _Movers:
    objects = [o for o, thing in enumerate(things) if thing.agent >= 0]
    return _Movers(
        np.array([*objects, len(things)]),
        np.array([*(things[o].agent for o in objects), 0]),
        np.array([*(things[o].behind for o in objects), EGO_NOSE]),
        np.array([*(things[o].shape.anchors for o in objects), EGO_AXLES]),
    )


def _work_sites(rng: np.random.Generator, streets: StreetMap, scenery: Scenery) -> list[tuple[float, float, int]]:
    main = streets.main
    count = int(rng.choice([0, 1, 2], p=[0.15, 0.5, 0.35]))
    parts = np.linspace(main.start + 50, main.end - 80, count + 1)
    return [scenery.work_site(float(rng.uniform(a, b - 20))) for a, b in itertools.pairwise(parts)]


def _ego_shape() -> Shape:
    length, width, _ = EGO_SIZE
    paint = Surface(Material.PAINT, (0.85, 0.85, 0.85))
    middle = EGO_NOSE - length / 2
    hulls = [block((middle, 0, 0.55), (length, width, 0.8), paint)]
    hulls.append(block((middle - 0.2, 0, 1.2), (2.6, width - 0.2, 0.7), paint, taper=(0.7, 0.8)))
    return Shape(tuple(Part(hull) for hull in hulls), 0, EGO_AXLES)


def _lamps_of(solids: Solids, lights: list[tuple[int, int, int]]) -> np.ndarray:
    lamps = []
    for o, junction, group in lights:
        faces = np.arange(solids.part_faces[solids.object_parts[o]], solids.part_faces[solids.object_parts[o + 1]])
        lit = faces[solids.materials[faces] == Material.LAMP]
        lamps += [(int(face), junction, group, color) for color, face in enumerate(lit)]
    return np.array(lamps, np.int64).reshape(-1, 4)
