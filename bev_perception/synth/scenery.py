"""Places what does not move: houses, trees, lamps, parked cars, construction sites, standing and sitting people."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from bev_perception.synth import people, street, vehicles
from bev_perception.synth.ground import Ground, edge_distance, kind_at
from bev_perception.synth.roads import Street, StreetMap
from bev_perception.synth.shapes import Shape
from bev_perception.synth.things import Thing

Maker = Callable[[np.random.Generator], Shape]


class Scenery:
    """Places stationary things, and keeps track of the free space.

    things: those placed so far
    """

    def __init__(self, rng: np.random.Generator, streets: StreetMap, ground: Ground) -> None:
        """Start with bare streets.

        rng: source of all random choices
        streets: where to place the things
        ground: of the same scene
        """
        self.things: list[Thing] = []
        self._rng, self._streets, self._ground = rng, streets, ground
        edges = ground.raster[..., 4]
        self._taken = (edges < streets.main.pavement - 0.5).astype(np.uint8)  # [H, W], one cell per metre
        self._edges = edges
        self._spots: list[tuple[float, float, float]] = []  # x, y, radius of small things

    def put(self, shape: Shape, x: float, y: float, yaw: float, category: str = "", activity: str = "") -> None:
        """Place a thing, whether or not the place is free.

        shape: of the thing
        x, y: m
        yaw: rad
        category, activity: as in Thing
        """
        _, height = kind_at(self._ground, x, y)
        self.things.append(Thing(shape, category, (x, y, height, yaw), activity))

    def put_if_free(self, shape: Shape, x: float, y: float, yaw: float, category: str = "", activity: str = "") -> bool:
        """Place a small thing unless another is too near; return whether it was placed. Arguments as in put."""
        radius = float(max(np.abs(shape.low[:2]).max(), np.abs(shape.high[:2]).max()))
        if any(math.hypot(x - a, y - b) < radius + r for a, b, r in self._spots):
            return False
        self._spots.append((x, y, radius))
        self.put(shape, x, y, yaw, category, activity)
        return True

    def reserve(self, x: float, y: float, radius: float) -> None:
        """Keep a circle free of small things; x, y and radius in m."""
        self._spots.append((x, y, radius))

    def put_on_land(self, shape: Shape, x: float, y: float, yaw: float) -> bool:
        """Place a house or the like unless the land is taken; return whether it was placed. Arguments as in put."""
        corners = np.array([(a, b) for a in (shape.low[0], shape.high[0]) for b in (shape.low[1], shape.high[1])])
        c, s = math.cos(yaw), math.sin(yaw)
        outline = (corners[[0, 1, 3, 2]] @ np.array([[c, s], [-s, c]]) + (x, y)).round().astype(np.int32)
        mask = np.zeros_like(self._taken)
        cv2.fillConvexPoly(mask, outline, (1,))
        if not mask.any() or (self._taken & mask).any():
            return False
        self._taken |= mask
        self.put(shape, x, y, yaw)
        return True

    def room(self, x: float, y: float) -> bool:
        """Return whether the land at x, y (m) is free."""
        i, j = round(x), round(y)
        inside = 0 <= j < self._taken.shape[0] and 0 <= i < self._taken.shape[1]
        return inside and not self._taken[j, i]

    # ---- what a scene has ----

    def build_houses(self) -> None:
        """Line all streets with houses, walls, hedges and trees."""
        rng = self._rng
        tall = rng.choice([6.0, 11.0, 22.0], p=[0.35, 0.4, 0.25])
        gaps = rng.uniform(0.05, 0.45)
        setback = rng.uniform(0.5, 7.0) if tall < 12 else rng.uniform(0.3, 3.0)
        roads = [self._streets.main, *(junction.street for junction in self._streets.junctions)]
        for road, back in [(road, back) for back in (0.0, 24.0) for road in roads]:  # a second row fills the gaps
            for side in (-1, 1):
                s = road.start
                while s < road.end:
                    length = rng.uniform(9, 26)
                    x, y, heading = road.at(s + length / 2, side * (road.half_width + road.pavement + setback + back))
                    # a house's front is on its y = 0, its back on negative y: turn the front towards the road
                    yaw = heading + (math.pi if side > 0 else 0.0)
                    if rng.random() > gaps:
                        height = max(3.2, tall * rng.uniform(0.6, 1.5))
                        self.put_on_land(street.building(rng, length, rng.uniform(9, 15), height), x, y, yaw)
                    elif rng.random() < 0.7 and not back:
                        fence = street.wall if rng.random() < 0.5 else street.hedge
                        self.put_on_land(fence(rng, length - 1.0), x, y, yaw)
                    s += length + rng.uniform(0.3, 5.0)

    def plant(self) -> None:
        """Plant trees along the pavements and on free land; put up street lamps, signs, bins and bus stops."""
        rng, main = self._rng, self._streets.main
        spacing = rng.uniform(8, 22)
        with_trees = rng.random() < 0.65
        for road in (main, *(junction.street for junction in self._streets.junctions)):
            for side in (-1, 1):
                for s in np.arange(road.start + rng.uniform(0, 10), road.end, spacing):
                    if with_trees and rng.random() < 0.75:
                        self._at_kerb(road, s + rng.uniform(-1, 1), side, 0.9, street.tree)
                for s in np.arange(road.start + rng.uniform(0, 20), road.end, 34.0):
                    self._at_kerb(road, s, side, 0.6, street.lamp_post)
                for s in rng.uniform(road.start, road.end, 3):
                    self._at_kerb(road, s, side, 0.5, street.sign_post, along=True)
                for s in rng.uniform(road.start, road.end, 4):
                    self._at_kerb(road, s, side, road.pavement - 0.4, street.bin_, "movable_object.pushable_pullable")
        for _ in range(2):
            side, s = int(rng.choice([-1, 1])), rng.uniform(main.start + 30, main.end - 30)
            self._at_kerb(main, s, side, main.pavement - 0.8, street.shelter)
        for _ in range(int(rng.integers(400, 1100))):
            x, y = rng.uniform(0, self._streets.size[0]), rng.uniform(0, self._streets.size[1])
            if self.room(x, y) and self._edges[int(y), int(x)] < 50:
                plant = street.bush(rng) if rng.random() < 0.4 else street.tree(rng, conifer=rng.random() < 0.25)
                self.put_if_free(plant, x, y, 0.0)

    def _at_kerb(
        self, road: Street, s: float, side: int, inward: float, maker: Maker, category: str = "", along: bool = False
    ) -> bool:
        """Place a thing on a pavement unless it is within a junction; return whether it was placed.

        s: position on the road, m
        side: 1 for the left pavement, -1 for the right
        inward: distance from the kerb, m
        along: whether it faces along the road; else it faces the road
        """
        x, y, heading = road.at(s, side * (road.half_width + inward))
        if not 0.3 < edge_distance(self._ground, x, y) < 0.99 * road.pavement:
            return False
        yaw = heading + (-side * math.pi / 2 if not along else 0.0)
        return self.put_if_free(maker(self._rng), x, y, yaw, category)

    def put_up_signals(self) -> list[tuple[int, int, int]]:
        """Put up traffic lights; return for each its number among the things, its junction and its signal group."""
        lights = []
        main = self._streets.main
        for number, junction in enumerate(self._streets.junctions):
            cross = junction.street
            for direction in (-1, 1):
                side, back = -direction * main.hand, math.pi if direction > 0 else 0.0
                x, y, heading = self._beyond(main, junction.s, cross.half_width + 3.5, side, direction)
                lights.append((len(self.things), number, 0))
                self.put(street.signal_post(), x, y, heading + back)
                if junction.tee and direction > 0:
                    continue  # no traffic comes from there
                # at a T-junction, on the far pavement of the main street
                x, y, heading = self._beyond(
                    cross, 0.0, main.half_width + (0.5 if junction.tee else 3.5), side, direction
                )
                lights.append((len(self.things), number, 2))
                self.put(street.signal_post(), x, y, heading + back)
        return lights

    def _beyond(self, road: Street, s: float, onward: float, side: int, direction: int) -> list[float]:
        """Return the first place (x, y, heading) beyond s that is off the roads, at a street's kerb or its extension.

        onward: least distance beyond s, m
        side: 1 for the left kerb, -1 for the right
        direction: in which to search, 1 along s, -1 against it
        """
        for further in np.arange(0.0, 20.0, 0.25):  # corners are round, and not all streets cross at right angles
            at = s + direction * (onward + further)
            inside = min(max(at, road.start), road.end)
            x, y, heading = road.at(inside, side * (road.half_width + 0.8)).tolist()
            x, y = x + (at - inside) * math.cos(heading), y + (at - inside) * math.sin(heading)
            if edge_distance(self._ground, x, y) > 0.3:
                break
        return [x, y, heading]

    def work_site(self, around: float) -> tuple[float, float, int]:
        """Set up a construction site at the kerb or beside the road; return its first and last s (m), and its side.

        around: s near which the site is to be, m
        """
        rng, main = self._rng, self._streets.main
        side, length = int(rng.choice([-1, 1])), rng.uniform(22, 45)
        s0 = around
        for junction in self._streets.junctions:
            if abs(s0 + length / 2 - junction.s) < length / 2 + junction.street.half_width + 9:
                s0 = junction.s + junction.street.half_width + 9
        s1 = min(s0 + length, main.end - 5)
        wide = main.parking or 3.0
        outer = main.half_width - main.parking + 0.3 if main.parking else main.half_width + main.pavement + 0.4
        for s in np.arange(s0, s1, 2.0):  # keep houses away
            x, y, _ = main.at(s, side * (outer + wide))
            cv2.circle(self._taken, (round(float(x)), round(float(y))), 4, (1,), -1)
        kind = rng.choice(["concrete", "water", "board"])
        for s in np.arange(s0 + 4, s1 - 4, 2.35 if kind != "board" else 2.7):
            x, y, heading = main.at(s, side * outer)
            yaw = heading - side * math.pi / 2 + rng.normal(0, 0.03)
            self.put(street.barrier(rng, str(kind)), x, y, yaw, "movable_object.barrier")
        for s, d in [(s0 + k * 1.2, outer + wide - 0.4 - k * (wide - 0.5) / 4) for k in range(4)]:
            x, y, heading = main.at(s, side * d)
            self.put(street.traffic_cone(rng), x, y, heading, "movable_object.trafficcone")
        for s in np.arange(s1 - 3, s1 + 4, 1.8):
            x, y, heading = main.at(s, side * (outer + rng.uniform(0, wide - 0.6)))
            self.put_if_free(street.traffic_cone(rng), x, y, heading, "movable_object.trafficcone")
        machines: list[tuple[Maker, str]] = [
            (vehicles.excavator, "vehicle.construction"),
            (vehicles.wheel_loader, "vehicle.construction"),
            (vehicles.roller, "vehicle.construction"),
            (vehicles.dump_truck, "vehicle.truck"),
        ]
        s = s0 + 9
        for k in rng.permutation(4)[: int(rng.integers(2, 4))]:
            maker, category = machines[k]
            x, y, heading = main.at(s, side * (outer + 0.45 + max(wide, 2.6) / 2))
            if s < s1 - 3:
                turned = heading + (math.pi if rng.random() < 0.5 else 0.0) + rng.normal(0, 0.06)
                self.put(maker(rng), x, y, turned, category, "parked")
                self.reserve(x, y, 3.2)
            s += 10.5
        for _ in range(int(rng.integers(2, 5))):
            x, y, _ = main.at(rng.uniform(s0 + 3, s1), side * (outer + wide + rng.uniform(0.3, 1.5)))
            worker = people.pedestrian(rng, "construction_worker")
            self.put_if_free(worker, x, y, rng.uniform(-3, 3), "human.pedestrian.construction_worker", "standing")
        return s0 - 4, s1 + 4, side

    def barrier_row(self) -> None:
        """Put a row of barriers along the kerb at a random position."""
        rng, main = self._rng, self._streets.main
        side, s0 = int(rng.choice([-1, 1])), rng.uniform(main.start + 40, main.end - 80)
        kind = str(rng.choice(["concrete", "water", "board"]))
        for s in np.arange(s0, s0 + rng.uniform(14, 40), 2.35 if kind != "board" else 2.7):
            x, y, heading = main.at(s, side * (main.half_width + 0.6))
            if edge_distance(self._ground, x, y) > 0.3:
                self.put_if_free(
                    street.barrier(rng, kind), x, y, heading - side * math.pi / 2, "movable_object.barrier"
                )

    def park(self, sites: list[tuple[float, float, int]]) -> None:
        """Fill the rows of parking spaces, except along construction sites.

        sites: first s, last s (m) and side of each construction site
        """
        rng = self._rng
        chance = rng.uniform(0.35, 0.9)
        for road in (self._streets.main, *(junction.street for junction in self._streets.junctions)):
            if not road.parking:
                continue
            closed = sites if road is self._streets.main else []
            for direction in (-1, 1):
                self._park_row(road, direction, chance, closed)

    def _park_row(self, road: Street, direction: int, chance: float, closed: list[tuple[float, float, int]]) -> None:
        rng, d = self._rng, road.parking_at(direction)
        side = 1 if d > 0 else -1
        s = road.start + 6.0
        while s < road.end - 8:
            kinds: list[tuple[Maker, str, float]] = [
                (vehicles.car, "vehicle.car", 0.77),
                (vehicles.pickup, "vehicle.truck", 0.06),
                (vehicles.box_truck, "vehicle.truck", 0.06),
                (vehicles.bus, "vehicle.bus.rigid", 0.02),
                (vehicles.trailer, "vehicle.trailer", 0.035),
                (lambda r: people.motorcycle(r, False), "vehicle.motorcycle", 0.055),
            ]
            maker, category, _ = kinds[rng.choice(len(kinds), p=[k[2] for k in kinds])]
            shape = maker(rng)
            length = float(shape.high[0] - shape.low[0])
            middle = s + length / 2
            x, y, heading = road.at(middle, d + rng.normal(0, 0.1))
            shut = any(a - length / 2 < middle < b + length / 2 and side == where for a, b, where in closed)
            if rng.random() < chance and not shut and self._clear_of_junctions(road, middle, length / 2 + 6):
                turned = heading + (0.0 if direction > 0 else math.pi) + rng.normal(0, 0.02)
                activity = "parked"
                if category == "vehicle.motorcycle":
                    turned, activity = heading + math.pi / 2 * side + rng.normal(0, 0.1), "left"
                    length = 0.9
                self.put(shape, x, y, turned, category, activity)
                self.reserve(x, y, 1.2)
            s += length + rng.uniform(0.7, 2.2)

    def _clear_of_junctions(self, road: Street, s: float, reach: float) -> bool:
        if road is self._streets.main:
            return all(abs(s - j.s) > j.street.half_width + reach for j in self._streets.junctions)
        return abs(s) > self._streets.main.half_width + reach

    def populate(self, crowd: float) -> None:
        """Place standing and sitting people, and bicycles and motorcycles without riders, on the pavements.

        crowd: how many people, 0..1
        """
        rng, main = self._rng, self._streets.main
        for _ in range(int(rng.integers(2, 5))):
            side, s = int(rng.choice([-1, 1])), rng.uniform(main.start + 20, main.end - 20)
            if self._at_kerb(main, s, side, main.pavement - 0.5, street.bench):
                x, y, z, yaw = self.things[-1].place
                for across in (-0.4, 0.4)[: int(rng.integers(1, 3))]:
                    at = (
                        x - across * math.sin(yaw) - 0.06 * math.cos(yaw),
                        y + across * math.cos(yaw) - 0.06 * math.sin(yaw),
                    )
                    sitter = people.sitting_pedestrian(rng)
                    self.things.append(Thing(sitter, "human.pedestrian.adult", (*at, z, yaw), "sitting"))
        for _ in range(round(4 + 14 * crowd)):
            side, s = int(rng.choice([-1, 1])), rng.uniform(main.start + 20, main.end - 20)
            for _ in range(int(rng.integers(1, 4))):  # out of the way of walking pedestrians
                inward = rng.uniform(0.3, 0.6) if rng.random() < 0.5 else main.pavement - rng.uniform(0.2, 0.5)
                x, y, _ = main.at(s + rng.normal(0, 0.9), side * (main.half_width + inward))
                role = str(rng.choice(["adult", "child", "police_officer"], p=[0.9, 0.07, 0.03]))
                if edge_distance(self._ground, x, y) > 0.25:
                    person = people.pedestrian(rng, role)
                    self.put_if_free(person, x, y, rng.uniform(-3.1, 3.1), f"human.pedestrian.{role}", "standing")
        for maker, category in ((people.bicycle, "vehicle.bicycle"), (people.motorcycle, "vehicle.motorcycle")):
            for _ in range(int(rng.integers(2, 5))):
                side, s = int(rng.choice([-1, 1])), rng.uniform(main.start + 20, main.end - 20)
                for k in range(int(rng.integers(1, 5))):
                    x, y, heading = main.at(s + 2.3 * k, side * (main.half_width + 0.55))
                    if edge_distance(self._ground, x, y) > 0.3:
                        turned = heading + rng.choice([0.0, math.pi]) + rng.normal(0, 0.06)
                        self.put_if_free(maker(rng, False), x, y, turned, category, "left")
