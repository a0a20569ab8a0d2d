"""Puts traffic on the streets: the ego car, vehicles on all lanes and turns, pedestrians on pavements and crossings."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bev_perception.synth import people, vehicles
from bev_perception.synth.roads import Stop, StreetMap, Way, crossing_way, main_way, smooth_way, turning_way
from bev_perception.synth.shapes import Shape
from bev_perception.synth.things import Thing
from bev_perception.synth.traffic import WARM_UP, Agent

#: ego car: length, width, height, m
EGO_SIZE = (4.08, 1.73, 1.56)
#: ego car: m from its origin (the rear axle) forward to the nose, and to the rear and front axles
EGO_NOSE, EGO_AXLES = 3.40, (0.0, 2.59)
#: share of the scenes in which the ego car turns off the main street, if a turning way has room for the drive
TURNING = 0.3


class Spawner:
    """Puts agents on ways where there is room.

    agents: everybody who moves, the ego car first
    things: the objects that the agents move; a lorry's trailer is one more
    turn: the stop line at which the ego car is to turn, and the time (s) at which it gets there if nothing holds it up;
        None without a turn
    """

    def __init__(self, rng: np.random.Generator, streets: StreetMap, seconds: float) -> None:
        """Start with empty streets.

        rng: source of all random choices
        streets: where to put the traffic
        seconds: length of the scene, s
        """
        self.agents: list[Agent] = []
        self.things: list[Thing] = []
        self.turn: tuple[Stop, float] | None = None
        self._rng, self._streets = rng, streets
        self._seconds = seconds
        self._pace = rng.uniform(7.0, 13.0)  # m/s, speed that most drivers want
        self._taken: list[np.ndarray] = []  # [n, 2] positions that vehicles occupy at the start

    def put_ego(self) -> None:
        """Place the ego car so that its whole drive fits on its way."""
        rng = self._rng
        direction = int(rng.choice([-1, 1]))
        turning = self._turning_drive(direction) if rng.random() < TURNING else None
        way, s = turning or self._main_drive(direction)
        self.agents.append(Agent(way, s, self._pace * rng.uniform(0.9, 1.1), EGO_SIZE[0], EGO_SIZE[1]))
        self._take(way, s, EGO_SIZE[0])

    @property
    def _ego_distance(self) -> float:
        """Distance that the ego car may cover, with a margin, m."""
        return self._pace * (self._seconds + WARM_UP) + 30

    def _turning_drive(self, direction: int) -> tuple[Way, float] | None:
        """Return a way that turns off the main street, and a start s from which the turn falls within the scene.

        None if no junction has such a way.
        """
        rng, streets = self._rng, self._streets
        for number in rng.permutation(len(streets.junctions)):
            way = turning_way(streets, int(number), direction, int(rng.choice([-1, 1])), onto_main=False)
            if way is None:
                continue
            stop, time = way.stops[-1], rng.uniform(0.2, 0.7) * self._seconds
            s = min(stop.s - self._pace * (WARM_UP + time), way.length - self._ego_distance)
            if s > 10:
                self.turn = (stop, (stop.s - s) / self._pace - WARM_UP)
                return way, s
        return None

    def _main_drive(self, direction: int) -> tuple[Way, float]:
        """Return a way along the main street, perhaps with a lane change, and the s to start from."""
        way = self._main_way(direction)
        return way, float(np.clip(self._rng.uniform(40, 60), 0, max(way.length - self._ego_distance, 10)))

    def _main_way(self, direction: int) -> Way:
        rng, main = self._rng, self._streets.main
        lane = int(rng.integers(main.lanes))
        if main.lanes > 1 and rng.random() < 0.5:
            other = lane + (1 if lane == 0 else -1)
            start = 60 + self._pace * WARM_UP + rng.uniform(0.2, 0.7) * self._pace * self._seconds
            return main_way(self._streets, lane, direction, (start if direction > 0 else main.end - start, other))
        return main_way(self._streets, lane, direction)

    def put_vehicles(self, density: float) -> None:
        """Fill lanes and turns with vehicles.

        density: vehicles per 100 m of a lane
        """
        rng, streets = self._rng, self._streets
        main = streets.main
        for direction in (-1, 1):
            for lane in range(main.lanes):
                self._fill(main_way(streets, lane, direction), density, outermost=lane == main.lanes - 1)
                if main.lanes > 1 and rng.random() < 0.7:
                    s = rng.uniform(main.start + 60, main.end - 60)
                    other = lane + (1 if lane == 0 else -1)
                    self._try(
                        main_way(streets, lane, direction, (s, other)), s - 50 if direction > 0 else main.end - s - 50
                    )
        for number, junction in enumerate(streets.junctions):
            for direction in (-1, 1):
                if not junction.tee:
                    for lane in range(junction.street.lanes):
                        self._fill(crossing_way(streets, number, lane, direction), 0.7 * density, outermost=True)
                for exit_direction in (-1, 1):
                    for onto_main in (False, True):
                        way = turning_way(streets, number, direction, exit_direction, onto_main)
                        if way is None or not way.stops:
                            continue
                        for _ in range(int(rng.integers(0, 3))):
                            self._try(way, way.stops[-1].s - rng.uniform(2, 90))

    def _fill(self, way: Way, density: float, outermost: bool) -> None:
        for s in self._rng.uniform(0, way.length, self._rng.poisson(density * way.length / 100)):
            self._try(way, float(s), outermost)

    def _try(self, way: Way, s: float, outermost: bool = False) -> None:
        """Put a vehicle of a random kind on a way, its nose at s, if there is room."""
        rng = self._rng
        makers: list[tuple[Callable[[float], None], float]] = [
            (lambda s: self._simple(way, s, vehicles.car(rng), "vehicle.car", 1.0), 0.60),
            (lambda s: self._simple(way, s, vehicles.pickup(rng), "vehicle.truck", 1.0), 0.05),
            (lambda s: self._simple(way, s, vehicles.box_truck(rng), "vehicle.truck", 0.85), 0.05),
            (lambda s: self._simple(way, s, vehicles.dump_truck(rng), "vehicle.truck", 0.8), 0.02),
            (lambda s: self._simple(way, s, vehicles.bus(rng), "vehicle.bus.rigid", 0.8), 0.08),
            (lambda s: self._semi(way, s), 0.06),
            (lambda s: self._bendy(way, s), 0.02),
            (lambda s: self._cycle(way, s, True), 0.055),
            (lambda s: self._cycle(way, s, False), 0.09 if outermost else 0.0),
        ]
        chances = np.array([chance for _, chance in makers])
        makers[rng.choice(len(makers), p=chances / chances.sum())][0](s)

    def _has_room(self, way: Way, s: float, length: float) -> bool:
        if s - length < 1.0 or s > way.length - 3.0:
            return False
        if any(0 < s - stop.s < 24 + length for stop in way.stops):
            return False  # no vehicle starts within a junction
        places = way.at(np.arange(s - length - 3, s + 5.5, 1.5))
        return all(np.linalg.norm(places[:, None] - taken[None], axis=2).min() > 2.3 for taken in self._taken)

    def _take(self, way: Way, s: float, length: float) -> None:
        self._taken.append(way.at(np.arange(s - length, s + 0.5, 1.5)))

    def _start(self, way: Way, s: float, length: float, width: float, pace: float) -> bool:
        if not self._has_room(way, s, length):
            return False
        self._take(way, s, length)
        self.agents.append(Agent(way, s, self._pace * pace * self._rng.uniform(0.85, 1.15), length, width))
        return True

    def _add(self, shape: Shape, category: str, activity: str, behind: float) -> None:
        """Add a thing that the newest agent moves."""
        self.things.append(Thing(shape, category, activity=activity, agent=len(self.agents) - 1, behind=behind))

    def _simple(self, way: Way, s: float, shape: Shape, category: str, pace: float) -> None:
        length, width = (shape.high - shape.low)[:2]
        if self._start(way, s, float(length), float(width), pace):
            self._add(shape, category, "driving", float(shape.high[0]))

    def _semi(self, way: Way, s: float) -> None:
        tractor, trailer = vehicles.tractor(self._rng), vehicles.trailer(self._rng)
        # the trailer's hitch lies over the tractor's rear axle
        behind = float(tractor.high[0]) - tractor.anchors[0] + trailer.anchors[1]
        if self._start(way, s, behind - float(trailer.low[0]), 2.5, 0.8):
            self._add(tractor, "vehicle.truck", "driving", float(tractor.high[0]))
            self._add(trailer, "vehicle.trailer", "driving", behind)

    def _bendy(self, way: Way, s: float) -> None:
        rng = self._rng
        front = vehicles.bus(rng, front_section=True)
        color, accent = _livery_of(front)
        size = front.high - front.low
        rear = vehicles.bus_in(color, accent, (8.0, float(size[1]) - 0.03, float(size[2]) - 0.16), with_front=False)
        behind = float(front.high[0] - front.low[0]) + 0.5 + float(rear.high[0])
        if self._start(way, s, behind - float(rear.low[0]), float(size[1]), 0.8):
            self._add(front, "vehicle.bus.bendy", "driving", float(front.high[0]))
            self._add(rear, "vehicle.bus.bendy", "driving", behind)

    def _cycle(self, way: Way, s: float, motor: bool) -> None:
        shape = people.motorcycle(self._rng, True) if motor else people.bicycle(self._rng, True)
        pace = 1.0 if motor else self._rng.uniform(3.5, 6.0) / self._pace
        if self._start(way, s, float(shape.high[0] - shape.low[0]), 0.8, pace):
            category = "vehicle.motorcycle" if motor else "vehicle.bicycle"
            self._add(shape, category, "ridden", float(shape.high[0]))

    # ---- people ----

    def put_walkers(self, crowd: float, rain: bool) -> None:
        """Let people walk along the pavements and over the crossings.

        crowd: how many people, 0..1
        rain: whether it rains, so that some carry an umbrella
        """
        rng, main = self._rng, self._streets.main
        for side in (-1, 1):
            for direction in (-1, 1):
                for _ in range(rng.poisson(3 + 14 * crowd)):
                    # between the things at the kerb and those along the houses; the two directions keep apart
                    share = rng.uniform(0.38, 0.52) if direction > 0 else rng.uniform(0.55, 0.68)
                    d = side * (main.half_width + max(1.0, share * main.pavement))
                    way = self._pavement_way(side, d, direction)
                    self._walker(way, rng.uniform(2, way.length - 2), rain)
        for number in range(len(self._streets.junctions)):
            for _ in range(rng.poisson(2 + 4 * crowd)):
                way = self._zebra_way(number)
                self._walker(way, rng.uniform(2, way.stops[0].s - 0.5) if way.stops else 2.0, rain)

    def _walker(self, way: Way, s: float, rain: bool) -> None:
        rng = self._rng
        role = str(rng.choice(["adult", "child", "construction_worker"], p=[0.9, 0.06, 0.04]))
        shape = people.pedestrian(rng, role, umbrella=rain and role == "adult" and rng.random() < 0.5)
        self.agents.append(Agent(way, s, float(np.clip(rng.normal(1.3, 0.2), 0.7, 2.0)), 0.6, 0.6, walks=True))
        self._add(shape, f"human.pedestrian.{role}", "walking", 0.3)

    def _pavement_way(self, side: int, d: float, direction: int) -> Way:
        main = self._streets.main
        s = np.arange(main.start, main.end, 0.5)[::direction]
        xy = main.at(s, d)[:, :2]
        along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(xy, axis=0), axis=1))])
        stops = []
        for number, junction in enumerate(self._streets.junctions):
            arm = math.sin(junction.street.points[0, 2] - main.at(junction.s, 0.0)[2])
            if junction.tee and arm * side < 0:
                continue
            kerb = junction.s - direction * (junction.street.half_width + 2.8)
            stops.append(Stop(float(np.interp(kerb * direction, s * direction, along)), number, 0))
        return smooth_way(xy, tuple(sorted(stops, key=lambda stop: stop.s)))

    def _zebra_way(self, number: int) -> Way:
        """Return a way along one pavement, across the main street near a junction, and along the other pavement."""
        rng, main = self._rng, self._streets.main
        junction = self._streets.junctions[number]
        beside, side, away = (int(rng.choice([-1, 1])) for _ in range(3))
        s = junction.s + beside * (junction.street.half_width + rng.uniform(1.9, 3.5))
        d = main.half_width + 1.4
        before, after = beside * rng.uniform(8, 25), away * rng.uniform(8, 25)
        if away != beside:
            after = beside * abs(after)
        legs = [
            main.at(np.linspace(s + before, s, 20), side * d)[:, :2],
            main.at(s, side * np.linspace(d, -d, 40))[:, :2],
            main.at(np.linspace(s, s + after, 20), -side * d)[:, :2],
        ]
        return smooth_way(np.concatenate(legs), (Stop(abs(before) + 1.0, number, 2),))


def _livery_of(bus: Shape) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    side = bus.parts[1].hull.surfaces[0]
    return side.color, side.accent
