"""Shapes of cars, trucks, trailers, buses and construction vehicles, with the sizes of nuScenes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.synth.shapes import Color, Hull, Material, Part, Shape, Surface, bar, block, column, extrude, wheel

BLACK: Color = (0.05, 0.05, 0.05)
DARK: Color = (0.12, 0.12, 0.12)
CHROME = Surface(Material.PAINT, (0.55, 0.55, 0.55), reflectance=0.6)
UNDERBODY = Surface(Material.MATTE, DARK, reflectance=0.1)
GLASS = Surface(Material.GLASS, (0.10, 0.09, 0.08), reflectance=0.08)
RIM: Color = (0.5, 0.5, 0.5)
TYRE = Surface(Material.WHEEL, BLACK, RIM, reflectance=0.1)

#: colours of cars (blue, green, red), and how frequent each is
_PAINTS: tuple[tuple[Color, float], ...] = (
    ((0.86, 0.87, 0.87), 0.25),
    ((0.06, 0.06, 0.06), 0.19),
    ((0.55, 0.55, 0.54), 0.20),
    ((0.28, 0.27, 0.26), 0.12),
    ((0.42, 0.18, 0.08), 0.08),
    ((0.12, 0.10, 0.55), 0.08),
    ((0.30, 0.45, 0.55), 0.03),
    ((0.20, 0.30, 0.12), 0.02),
    ((0.10, 0.65, 0.85), 0.03),
)
_LIVERIES: tuple[Color, ...] = (
    (0.88, 0.88, 0.88),
    (0.60, 0.30, 0.10),
    (0.15, 0.15, 0.65),
    (0.20, 0.50, 0.15),
    (0.10, 0.55, 0.85),
    (0.45, 0.45, 0.42),
    (0.75, 0.60, 0.20),
)


def _paint(rng: np.random.Generator) -> Color:
    chances = np.array([chance for _, chance in _PAINTS])
    base = np.array(_PAINTS[rng.choice(len(_PAINTS), p=chances / chances.sum())][0])
    b, g, r = np.clip(base * rng.uniform(0.85, 1.12) + rng.uniform(-0.02, 0.02, 3), 0.02, 0.95).tolist()
    return b, g, r


def _livery(rng: np.random.Generator) -> tuple[Color, Color]:
    first, second = rng.choice(len(_LIVERIES), 2, replace=False)
    return _LIVERIES[first], _LIVERIES[second]


def _shape(hulls: list[Hull], name: str, anchors: tuple[float, float] = (0.0, 0.0)) -> Shape:
    return Shape(tuple(Part(hull) for hull in hulls), OCC3D_CLASSES.index(name), anchors)


def _wheels(axles: list[float], width: float, radius: float, thick: float) -> list[Hull]:
    return [wheel(x, side * (width / 2 - thick / 2 + 0.015), radius, thick, TYRE) for x in axles for side in (-1, 1)]


def _body(profile: list[tuple[float, float]], half_width: float, color: Color, lean: float = 0.03) -> Hull:
    """Return a car's body below the windows."""
    paint = Surface(Material.PAINT, color)
    front = Surface(Material.CAR_FRONT, color, (0.85, 0.9, 0.9), 0.5)
    rear = Surface(Material.CAR_REAR, color, (0.05, 0.05, 0.6), 0.5)

    def edge(nx: float, nz: float) -> Surface:
        if nz < -0.5:
            return UNDERBODY
        return front if nx > 0.75 else rear if nx < -0.75 else paint

    return extrude(profile, half_width, Surface(Material.CAR_SIDE, color), edge, lean)


def _cabin(profile: list[tuple[float, float]], half_width: float, color: Color, lean: float = 0.28) -> Hull:
    """Return a car's body above the belt line: glass all round, painted roof and pillars."""
    roof = Surface(Material.PAINT, color)
    side = Surface(Material.SIDE_GLASS, (0.10, 0.09, 0.08), color, 0.1)
    return extrude(profile, half_width, side, lambda nx, nz: roof if nz > 0.9 else GLASS, lean)


def car(rng: np.random.Generator) -> Shape:
    """Return a sedan, hatchback, estate, off-roader or van."""
    kind = rng.choice(["sedan", "hatchback", "suv", "van"], p=[0.4, 0.2, 0.28, 0.12])
    length, width, height = {
        "sedan": (4.65, 1.82, 1.46),
        "hatchback": (4.05, 1.76, 1.50),
        "suv": (4.70, 1.92, 1.75),
        "van": (4.95, 1.95, 1.98),
    }[kind] * rng.uniform(0.95, 1.05, 3)
    color = _paint(rng)
    half, belt = length / 2, 0.60 * height
    nose = 0.52 * height if kind != "van" else 0.56 * height
    tail = belt if kind != "sedan" else 0.58 * height
    lower = [
        (-half, 0.32),
        (-half + 0.04, tail - 0.03),
        (-half + 0.25, tail),
        (0.18 * length, belt),
        (half - 0.12, nose),
        (half, 0.36),
        (half - 0.1, 0.22),
        (-half + 0.1, 0.22),
    ]
    ends = {
        "sedan": (-0.40, 0.22, -0.24, 0.02),
        "hatchback": (-0.48, 0.26, -0.40, 0.06),
        "suv": (-0.49, 0.25, -0.44, 0.07),
        "van": (-0.495, 0.36, -0.47, 0.20),
    }[kind]
    back, front, roof_back, roof_front = (e * length for e in ends)
    upper = [(back, belt - 0.06), (front, belt - 0.06), (roof_front, height), (roof_back, height)]
    radius = 0.205 * height if kind != "sedan" else 0.22 * height
    hulls = [_body(lower, width / 2 - 0.01, color), _cabin(upper, width / 2 - 0.06, color)]
    hulls += _wheels([-0.29 * length, 0.305 * length], width, radius, 0.22)
    return _shape(hulls, "car", (-0.29 * length, 0.305 * length))


def pickup(rng: np.random.Generator) -> Shape:
    """Return a pick-up, in nuScenes a truck."""
    length, width, height = np.array([5.75, 2.0, 1.88]) * rng.uniform(0.96, 1.04, 3)
    color, half, belt = _paint(rng), length / 2, 0.60 * height
    lower = [(-half, 0.45), (-half, belt - 0.05), (half - 0.1, 0.56 * height), (half, 0.45), (half - 0.1, 0.33)]
    upper = [
        (-0.10 * length, belt - 0.06),
        (0.24 * length, belt - 0.06),
        (0.13 * length, height),
        (-0.07 * length, height),
    ]
    bed = Surface(Material.MATTE, DARK)
    hulls = [_body([*lower, (-half + 0.1, 0.33)], width / 2 - 0.01, color), _cabin(upper, width / 2 - 0.07, color)]
    hulls.append(block((-0.30 * length, 0, belt + 0.02), (0.36 * length, width - 0.3, 0.04), bed))
    for side in (-1, 1):
        rail = block(
            (-0.30 * length, side * (width / 2 - 0.09), belt + 0.10), (0.38 * length, 0.1, 0.2), Surface(1, color)
        )
        hulls.append(rail)
    hulls += _wheels([-0.30 * length, 0.31 * length], width, 0.38, 0.25)
    return _shape(hulls, "truck", (-0.30 * length, 0.31 * length))


def _lorry_cab(front: float, width: float, height: float, depth: float, color: Color) -> list[Hull]:
    """Return a lorry's cab over the engine: without a bonnet, with a large windscreen."""
    paint = Surface(Material.PAINT, color)
    side = Surface(Material.CAR_SIDE, color)
    face = Surface(Material.CAR_FRONT, color, (0.85, 0.9, 0.9), 0.5)
    waist = 0.52 * height
    low = extrude(
        [(front - depth, 0.45), (front, 0.40), (front, waist), (front - depth, waist)],
        width / 2,
        side,
        lambda nx, nz: face if nx > 0.75 else paint,
    )
    pane = Surface(Material.SIDE_GLASS, (0.10, 0.09, 0.08), color, 0.1)
    high = extrude(
        [(front - depth, waist), (front, waist), (front - 0.22, height), (front - depth, height)],
        width / 2,
        pane,
        lambda nx, nz: GLASS if nx > 0.75 else paint,
        0.06,
    )
    return [low, high]


def box_truck(rng: np.random.Generator) -> Shape:
    """Return a lorry with a closed body."""
    length, width, height = np.array([7.4, 2.42, 3.1]) * rng.uniform(0.88, 1.12, 3)
    color, accent = _livery(rng)
    cab_height, half, depth = min(2.5, 0.85 * height), length / 2, 1.75
    hulls = _lorry_cab(half, width - 0.15, cab_height, depth, color)
    cargo = Surface(Material.CARGO, _LIVERIES[0] if rng.random() < 0.5 else color, accent, 0.5)
    body = length - depth - 0.15
    hulls.append(block((-half + body / 2, 0, (height + 0.95) / 2), (body, width, height - 0.95), cargo))
    hulls.append(block((-0.6, 0, 0.75), (length - 1.4, 0.9, 0.35), UNDERBODY))
    lamps = Surface(Material.CAR_REAR, DARK, (0.05, 0.05, 0.6))
    hulls.append(block((-half + 0.06, 0, 0.75), (0.08, width - 0.1, 0.25), UNDERBODY, rear=lamps))
    hulls += _wheels([-0.27 * length, half - 1.0], width, 0.46, 0.3)
    return _shape(hulls, "truck", (-0.27 * length, half - 1.0))


def dump_truck(rng: np.random.Generator) -> Shape:
    """Return a lorry with an open body for rubble, in nuScenes a truck and not a construction vehicle."""
    length, width, height = np.array([7.6, 2.5, 3.0]) * rng.uniform(0.92, 1.08, 3)
    color, accent = _livery(rng)
    half = length / 2
    hulls = _lorry_cab(half, width - 0.1, 0.93 * height, 1.9, color)
    steel = Surface(Material.PAINT, accent, reflectance=0.5)
    body = length - 2.3
    profile = [(-half, 1.6), (-half + 0.3, 1.1), (half - 2.3, 1.1), (half - 2.1, height), (-half - 0.0, height - 0.3)]
    hulls.append(extrude(profile, width / 2, steel, lambda nx, nz: steel))
    load = Surface(Material.MASONRY, (0.25, 0.33, 0.42))
    hulls.append(block((-half + body / 2, 0, height - 0.06), (body - 0.8, width - 0.4, 0.3), load, taper=(0.5, 0.4)))
    hulls.append(block((-0.5, 0, 0.8), (length - 1.2, 1.0, 0.5), UNDERBODY))
    hulls += _wheels([-0.36 * length, -0.20 * length, half - 1.0], width, 0.5, 0.34)
    return _shape(hulls, "truck", (-0.28 * length, half - 1.0))


def tractor(rng: np.random.Generator) -> Shape:
    """Return the lorry that pulls a semi-trailer; its hitch is over the rear axle."""
    length, width, height = np.array([6.2, 2.5, 3.6]) * rng.uniform(0.96, 1.04, 3)
    color, _ = _livery(rng)
    half = length / 2
    hulls = _lorry_cab(half, width, height, 2.4, color)
    hulls.append(block((-1.2, 0, 0.8), (length - 2.4, 0.9, 0.3), UNDERBODY))
    hulls += _wheels([-half + 0.75, -half + 2.0, half - 1.3], width, 0.5, 0.34)
    return _shape(hulls, "truck", (-half + 1.4, half - 1.3))


def trailer(rng: np.random.Generator) -> Shape:
    """Return a semi-trailer; its anchors are the wheels and the hitch."""
    length, width, height = np.array([11.0, 2.5, 3.8]) * rng.uniform((0.85, 0.97, 0.95), (1.12, 1.03, 1.03))
    color, accent = _livery(rng)
    half = length / 2
    rear = Surface(Material.CAR_REAR, color, (0.05, 0.05, 0.6), 0.5)
    kind = rng.choice(["box", "container", "flat"])
    if kind == "flat":
        hulls = [block((0, 0, 1.2), (length, width, 0.2), Surface(Material.MATTE, DARK), rear=rear)]
        cargo = Surface(Material.MASONRY, (0.45, 0.55, 0.62))
        for x in np.arange(-half + 1.3, half - 1.2, 2.6):
            hulls.append(block((x, 0, 1.3 + 0.7), (2.3, width - 0.3, 1.4), cargo))
        hulls.append(block((half - 0.1, 0, 2.1), (0.12, width, 1.8), Surface(Material.MATTE, accent)))
    else:
        material = Material.CARGO if kind == "box" else Material.LATTICE
        side = Surface(material, color, accent, 0.5)
        hulls = [block((0, 0, (height + 1.15) / 2), (length, width, height - 1.15), side, rear=side)]
    hulls.append(block((-0.3, 0, 1.0), (length - 1.0, 1.1, 0.25), UNDERBODY))
    hulls.append(block((-half + 0.06, 0, 0.8), (0.1, width - 0.1, 0.25), UNDERBODY, rear=rear))
    for side_y in (-1, 1):
        hulls.append(bar((0.24 * length, side_y * 0.8, 0.15), (0.24 * length, side_y * 0.8, 1.0), 0.12, UNDERBODY))
        hulls.append(block((-0.05 * length, side_y * (width / 2 - 0.08), 0.8), (0.35 * length, 0.04, 0.35), CHROME))
    hulls += _wheels([-half + 1.0, -half + 2.2, -half + 3.4], width, 0.5, 0.34)
    return _shape(hulls, "trailer", (-half + 2.2, half - 1.3))


def bus(rng: np.random.Generator, front_section: bool = False) -> Shape:
    """Return a bus, or the front section of an articulated bus."""
    length, width, height = np.array([11.4, 2.85, 3.3]) * rng.uniform((0.92, 0.98, 0.95), (1.08, 1.03, 1.06))
    if front_section:
        length = 9.5
    color, accent = _livery(rng)
    return bus_in(color, accent, (length, width, height))


def bus_in(color: Color, accent: Color, size: tuple[float, float, float], with_front: bool = True) -> Shape:
    """Return a bus.

    color, accent: its livery
    size: length, width, height, m
    with_front: whether it has a front; the rear section of an articulated bus has none
    """
    length, width, height = size
    half = length / 2
    side = Surface(Material.BUS_SIDE, color, accent, 0.3)
    paint = Surface(Material.PAINT, color)
    rear = Surface(Material.CAR_REAR, color, (0.05, 0.05, 0.6), 0.5)
    face = Surface(Material.CAR_FRONT, accent, (0.85, 0.9, 0.9), 0.5)
    waist = 0.36 * height

    def lower(nx: float, nz: float) -> Surface:
        return (
            (face if with_front else UNDERBODY) if nx > 0.8 else rear if nx < -0.8 else UNDERBODY if nz < 0 else paint
        )

    def upper(nx: float, nz: float) -> Surface:
        return (GLASS if with_front else UNDERBODY) if nx > 0.8 else rear if nx < -0.8 else paint

    skirt = Surface(Material.CAR_SIDE, accent, reflectance=0.3)
    hulls = [
        extrude([(-half, 0.32), (half, 0.32), (half, waist), (-half, waist)], width / 2, skirt, lower),
        extrude([(-half, waist), (half, waist), (half - 0.15, height), (-half + 0.05, height)], width / 2, side, upper),
    ]
    if with_front:
        sign = Surface(Material.LAMP, (0.05, 0.45, 0.85))
        hulls.append(block((half - 0.1, 0, height - 0.22), (0.1, 0.65 * width, 0.26), UNDERBODY, front=sign))
    hulls.append(block((-0.15 * length, 0, height + 0.08), (0.3 * length, 0.6 * width, 0.16), paint))
    axles = [-0.27 * length, half - 2.6] if with_front else [-0.2 * length]
    hulls += _wheels(axles, width, 0.48, 0.3)
    return _shape(hulls, "bus", (-0.27 * length, half - 2.6) if with_front else (-0.2 * length, half - 0.3))


_DIGGERS: tuple[Color, ...] = ((0.06, 0.55, 0.85), (0.05, 0.62, 0.90), (0.08, 0.38, 0.85), (0.25, 0.60, 0.75))


def _machine(rng: np.random.Generator, hulls: list[Hull], anchors: tuple[float, float]) -> Shape:
    size = rng.uniform(0.88, 1.12)
    grown = [replace(hull, vertices=hull.vertices * size) for hull in hulls]
    return _shape(grown, "construction_vehicle", (anchors[0] * size, anchors[1] * size))


def excavator(rng: np.random.Generator) -> Shape:
    """Return an excavator with its arm held low."""
    yellow = Surface(Material.PAINT, _DIGGERS[rng.integers(len(_DIGGERS))], reflectance=0.4)
    track = Surface(Material.LATTICE, (0.14, 0.14, 0.15), BLACK, 0.15)
    hulls = [
        extrude(
            [(-1.5, 0.35), (-1.2, 0.0), (1.2, 0.0), (1.5, 0.35), (1.3, 0.8), (-1.3, 0.8)], 0.28, track, lambda *_: track
        ).moved((-0.6, side * 1.0, 0))
        for side in (-1, 1)
    ]
    hulls.append(block((-0.6, 0, 0.85), (1.6, 1.6, 0.4), UNDERBODY))
    hulls.append(block((-1.1, 0, 1.55), (2.6, 2.4, 1.1), yellow, taper=(0.92, 0.95)))
    glass = Surface(Material.SIDE_GLASS, (0.10, 0.09, 0.08), yellow.color)
    hulls.append(block((0.2, 0.65, 2.05), (1.5, 1.0, 1.7), glass, front=GLASS, top=yellow, taper=(0.8, 0.95)))
    knee, wrist = (2.0, -0.3, rng.uniform(3.0, 3.5)), (3.2, -0.3, rng.uniform(1.4, 1.9))
    hulls += [bar((0.2, -0.3, 1.6), knee, 0.42, yellow), bar(knee, wrist, 0.32, yellow)]
    bucket = Surface(Material.MATTE, (0.25, 0.25, 0.27))
    hulls.append(block((3.1, -0.3, wrist[2] - 0.35), (0.8, 0.95, 0.7), bucket, taper=(0.7, 1.0)))
    return _machine(rng, hulls, (-1.2, 1.2))


def wheel_loader(rng: np.random.Generator) -> Shape:
    """Return a wheel loader with its shovel in front."""
    yellow = Surface(Material.PAINT, _DIGGERS[rng.integers(len(_DIGGERS))], reflectance=0.4)
    hulls = [block((-1.3, 0, 1.45), (2.6, 1.9, 1.2), yellow, taper=(0.9, 0.85))]
    glass = Surface(Material.SIDE_GLASS, (0.10, 0.09, 0.08), yellow.color)
    hulls.append(block((0.1, 0, 2.35), (1.5, 1.5, 1.7), glass, front=GLASS, top=yellow, taper=(0.85, 0.85)))
    hulls.append(block((0.9, 0, 1.1), (1.6, 0.9, 0.6), UNDERBODY))
    hulls += [bar((0.7, side * 0.55, 1.6), (2.4, side * 0.55, 0.6), 0.25, yellow) for side in (-1, 1)]
    shovel = Surface(Material.MATTE, (0.22, 0.24, 0.26))
    hulls.append(extrude([(2.2, 0.2), (3.1, 0.12), (2.5, 1.1), (2.2, 1.0)], 1.25, shovel, lambda *_: shovel))
    hulls += _wheels([-1.4, 1.3], 2.4, 0.72, 0.55)
    return _machine(rng, hulls, (-1.4, 1.3))


def roller(rng: np.random.Generator) -> Shape:
    """Return a road roller."""
    yellow = Surface(Material.PAINT, _DIGGERS[rng.integers(len(_DIGGERS))], reflectance=0.4)
    steel = Surface(Material.MATTE, (0.33, 0.34, 0.35), reflectance=0.5)
    hulls = [wheel(1.5, 0, 0.72, 2.0, steel, 16), block((1.5, 0, 1.0), (0.5, 2.2, 0.25), yellow)]
    hulls.append(block((-0.9, 0, 1.35), (2.4, 1.7, 1.0), yellow, taper=(0.9, 0.9)))
    hulls += [bar((x, y, 1.6), (x, y, 2.75), 0.09, UNDERBODY) for x in (-0.5, 0.6) for y in (-0.7, 0.7)]
    hulls.append(block((0.05, 0, 2.8), (1.6, 1.7, 0.12), yellow))
    hulls.append(column((0.05, 0, 1.2), 0.3, 1.1, Surface(Material.CLOTH, (0.1, 0.6, 0.85))))
    hulls += _wheels([-1.2], 2.0, 0.72, 0.5)
    return _machine(rng, hulls, (-1.2, 1.5))
