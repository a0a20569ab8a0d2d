"""Shapes of pedestrians, bicycles and motorcycles, with the sizes of nuScenes."""

from __future__ import annotations

import math

import numpy as np

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.synth.shapes import (
    Color,
    Hull,
    Material,
    Part,
    Shape,
    Surface,
    ball,
    bar,
    block,
    column,
    loft,
    wheel,
)

_SKINS: tuple[Color, ...] = ((0.50, 0.60, 0.78), (0.35, 0.45, 0.62), (0.22, 0.30, 0.45), (0.15, 0.20, 0.30))
_HAIRS: tuple[Color, ...] = ((0.05, 0.05, 0.06), (0.10, 0.14, 0.22), (0.25, 0.40, 0.55), (0.5, 0.5, 0.5))
_TOPS: tuple[Color, ...] = (
    (0.75, 0.75, 0.75),
    (0.08, 0.08, 0.09),
    (0.55, 0.25, 0.12),
    (0.15, 0.12, 0.60),
    (0.20, 0.45, 0.20),
    (0.40, 0.40, 0.42),
    (0.20, 0.55, 0.75),
    (0.55, 0.35, 0.60),
    (0.65, 0.62, 0.30),
)
_TROUSERS: tuple[Color, ...] = (
    (0.30, 0.20, 0.14),
    (0.09, 0.09, 0.10),
    (0.32, 0.40, 0.46),
    (0.25, 0.25, 0.26),
    (0.45, 0.32, 0.22),
)
_VEST: Color = (0.10, 0.85, 0.75)
_HELMETS: tuple[Color, ...] = ((0.1, 0.75, 0.9), (0.9, 0.9, 0.9), (0.1, 0.35, 0.9))
_LEG_SWING, _ARM_SWING = 0.32, 0.34  # rad, amplitudes of walking


def _cloth(color: Color) -> Surface:
    return Surface(Material.CLOTH, color, reflectance=0.25)


def _pick(rng: np.random.Generator, colors: tuple[Color, ...]) -> Color:
    return colors[rng.integers(len(colors))]


def _limb(top: tuple[float, float, float], length: float, thick: float, surface: Surface) -> Hull:
    x, y, z = top
    return block((x, y, z - length / 2), (thick, thick, length), surface)


def _torso(z: float, height: float, depth: float, width: float, surface: Surface) -> Hull:
    """Return a torso, broadest at the shoulders."""
    around = 2 * np.pi * (np.arange(8) + 0.5) / 8
    ring = np.stack([np.cos(around) * depth / 2, np.sin(around) * width / 2], axis=1)
    return loft(np.c_[ring * 0.78, np.full(8, z)], np.c_[ring, np.full(8, z + height)], surface)


def pedestrian(rng: np.random.Generator, role: str = "adult", umbrella: bool = False) -> Shape:
    """Return a standing or walking pedestrian.

    role: adult, child, construction_worker or police_officer
    umbrella: whether the pedestrian carries one
    """
    tall = rng.normal(1.74, 0.08) if role != "child" else rng.uniform(1.1, 1.4)
    scale = tall / 1.74
    skin, hair = _cloth(_pick(rng, _SKINS)), Surface(Material.FOLIAGE, *(_pick(rng, _HAIRS),) * 2)
    top, trousers = _cloth(_pick(rng, _TOPS)), _cloth(_pick(rng, _TROUSERS))
    if role == "construction_worker":
        top, hair = Surface(Material.STRIPES, _VEST, (0.75, 0.75, 0.75), 0.9), _cloth(_pick(rng, _HELMETS))
    if role == "police_officer":
        top, trousers, hair = _cloth((0.35, 0.16, 0.08)), _cloth((0.18, 0.10, 0.06)), _cloth((0.25, 0.12, 0.06))
    shoes = Surface(Material.MATTE, (0.08, 0.08, 0.08) if rng.random() < 0.6 else (0.8, 0.8, 0.8))
    hip, shoulder = 0.86 * scale, 1.44 * scale
    wide = rng.uniform(0.40, 0.47) * scale
    parts = []
    for side, phase in ((-1, 0.0), (1, math.pi)):
        y = side * 0.1 * scale
        legs = [
            _limb((0, y, hip + 0.04), hip - 0.06, 0.17 * scale, trousers),
            block((0.05 * scale, y, 0.04), (0.26 * scale, 0.10 * scale, 0.08), shoes),
        ]
        parts += [Part(hull, (0, y, hip), _LEG_SWING, phase) for hull in legs]
        at = (0.0, side * (wide / 2 + 0.03), shoulder - 0.02)
        arm = _limb(at, 0.58 * scale, 0.10 * scale, top)
        hand = block((0, at[1], shoulder - 0.64 * scale), (0.09, 0.07, 0.1), skin)
        swing = 0.0 if umbrella and side == 1 else _ARM_SWING
        parts += [Part(hull, at, swing, phase + math.pi) for hull in (arm, hand)]
    parts.append(Part(_torso(hip - 0.02, shoulder - hip + 0.04, 0.26 * scale, wide, top)))
    parts.append(Part(column((0, 0, shoulder), 0.06, 0.12, skin, corners=6)))
    parts.append(Part(ball((0.01, 0, shoulder + 0.17), (0.10, 0.085, 0.125), skin, 6, 4)))
    parts.append(Part(ball((-0.015, 0, shoulder + 0.215), (0.105, 0.095, 0.11), hair, 6, 4)))
    if umbrella:
        cover = Surface(Material.CLOTH, _pick(rng, _TOPS))
        parts.append(Part(bar((0.1, 0.15, shoulder - 0.3), (0.1, 0.15, tall + 0.3), 0.03, shoes)))
        parts.append(Part(column((0.1, 0.1, tall + 0.12), 0.48, 0.22, cover, top=0.1)))
    elif role == "adult" and rng.random() < 0.3:
        parts.append(Part(block((-0.2, 0, shoulder - 0.24), (0.16, 0.3, 0.42), _cloth(_pick(rng, _TROUSERS)))))
    return Shape(tuple(parts), OCC3D_CLASSES.index("pedestrian"))


def sitting_pedestrian(rng: np.random.Generator) -> Shape:
    """Return a pedestrian who sits on a bench 0.45 m high, looking along x."""
    hulls = _seated(rng, seat=(0.0, 0.45), lean=rng.uniform(-0.1, 0.2), feet=0.0, reach=None)
    return Shape(tuple(Part(hull) for hull in hulls), OCC3D_CLASSES.index("pedestrian"))


def _seated(
    rng: np.random.Generator, seat: tuple[float, float], lean: float, feet: float, reach: tuple[float, float] | None
) -> list[Hull]:
    """Return the hulls of a seated person.

    seat: x, z of the seat, m
    lean: of the torso, forward, rad
    feet: z of the feet, m
    reach: x, z of the hands, m; None rests them on the lap
    """
    (x, z), skin, top, trousers = (
        seat,
        _cloth(_pick(rng, _SKINS)),
        _cloth(_pick(rng, _TOPS)),
        _cloth(_pick(rng, _TROUSERS)),
    )
    shoulder = (x + 0.55 * math.sin(lean), z + 0.1 + 0.55 * math.cos(lean))
    hulls = [_torso(0, 0.6, 0.25, 0.42, top).moved((x, 0, z + 0.02), pitch=lean)]
    knee = (x + 0.42, max(z - 0.02, feet + 0.35))
    for side in (-0.12, 0.12):
        hulls.append(bar((x - 0.02, side, z + 0.08), (knee[0], side, knee[1] + 0.06), 0.15, trousers))
        hulls.append(bar((knee[0], side, knee[1] + 0.06), (x + 0.30, side, feet + 0.03), 0.12, trousers))
        hand = reach or (x + 0.25, z + 0.2)
        hulls.append(bar((shoulder[0], side * 2.0, shoulder[1] - 0.03), (hand[0], side * 2.0, hand[1]), 0.09, top))
    head = (shoulder[0] + 0.05, 0.0, shoulder[1] + 0.16)
    hulls.append(ball(head, (0.10, 0.085, 0.125), skin, 6, 4))
    helmet = _cloth(_pick(rng, _TOPS) if reach else _pick(rng, _HAIRS))
    hulls.append(ball((head[0] - 0.015, 0, head[2] + 0.05), (0.125, 0.11, 0.11), helmet, 6, 4))
    return hulls


def bicycle(rng: np.random.Generator, rider: bool) -> Shape:
    """Return a bicycle, with or without a rider."""
    size = rng.uniform(0.94, 1.06)
    radius, base = 0.34 * size, 1.06 * size
    spokes = Surface(Material.SPOKES, (0.05, 0.05, 0.05), (0.35, 0.35, 0.33), 0.1)
    paint = Surface(Material.PAINT, _pick(rng, _TOPS))
    black = Surface(Material.MATTE, (0.07, 0.07, 0.07))
    rear, front, crank = (-base / 2, 0, radius), (base / 2, 0, radius), (-0.06, 0, 0.28)
    saddle, head = (-0.22 * size, 0, 0.88 * size), (0.36 * size, 0, 0.84 * size)
    hulls = [wheel(x, 0, radius, 0.05, spokes) for x in (rear[0], front[0])]
    for a, b in ((rear, crank), (rear, saddle), (crank, saddle), (crank, head), (saddle, head), (head, front)):
        hulls.append(bar(a, b, 0.045, paint))
    hulls.append(bar((head[0] - 0.02, -0.28, 1.0 * size), (head[0] - 0.02, 0.28, 1.0 * size), 0.05, black))
    hulls.append(bar(head, (head[0] - 0.02, 0, 1.0 * size), 0.05, black))
    hulls.append(block((saddle[0], 0, 0.93 * size), (0.26, 0.16, 0.07), black))
    if rider:
        hulls += _seated(rng, (saddle[0], 0.93 * size), 0.45, 0.25, (head[0] - 0.05, 1.02 * size))
    return Shape(tuple(Part(hull) for hull in hulls), OCC3D_CLASSES.index("bicycle"), (rear[0], front[0]))


def motorcycle(rng: np.random.Generator, rider: bool) -> Shape:
    """Return a motorcycle or a scooter, with or without a rider."""
    size = rng.uniform(0.92, 1.06)
    paint = Surface(Material.PAINT, _pick(rng, _TOPS), reflectance=0.4)
    black = Surface(Material.MATTE, (0.08, 0.08, 0.08))
    steel = Surface(Material.PAINT, (0.45, 0.45, 0.45), reflectance=0.6)
    rims = Surface(Material.WHEEL, (0.05, 0.05, 0.05), (0.5, 0.5, 0.5), 0.1)
    base = 1.38 * size
    hulls = [wheel(x, 0, 0.31, 0.16, rims) for x in (-base / 2, base / 2)]
    if rng.random() < 0.45:  # a scooter: leg shield, step, bulky tail
        hulls.append(block((0.38, 0, 0.72), (0.14, 0.42, 0.75), paint, taper=(0.8, 0.75)))
        hulls.append(block((0.08, 0, 0.32), (0.55, 0.34, 0.12), black))
        hulls.append(block((-0.42, 0, 0.58), (0.8, 0.36, 0.42), paint, taper=(0.9, 0.8)))
    else:
        hulls.append(block((0.02, 0, 0.48), (0.55, 0.34, 0.45), steel))
        hulls.append(block((0.14, 0, 0.84), (0.55, 0.32, 0.26), paint, taper=(0.8, 0.7)))
        hulls.append(block((-0.62, 0, 0.70), (0.45, 0.24, 0.14), paint))
    hulls.append(block((-0.32, 0, 0.83), (0.72, 0.30, 0.12), black))
    hulls += [bar((base / 2, y, 0.31), (base / 2 - 0.28, y, 1.0), 0.06, steel) for y in (-0.1, 0.1)]
    hulls.append(bar((base / 2 - 0.3, -0.36, 1.05), (base / 2 - 0.3, 0.36, 1.05), 0.05, black))
    lamp = Surface(Material.LAMP, (0.8, 0.9, 0.9))
    hulls.append(block((base / 2 - 0.2, 0, 0.95), (0.16, 0.2, 0.2), paint, front=lamp))
    hulls.append(block((-0.86 * size, 0, 0.76), (0.06, 0.2, 0.1), Surface(Material.LAMP, (0.05, 0.05, 0.6))))
    if rider:
        hulls += _seated(rng, (-0.28, 0.88), 0.25, 0.30, (base / 2 - 0.35, 1.08))
    return Shape(tuple(Part(hull) for hull in hulls), OCC3D_CLASSES.index("motorcycle"), (-base / 2, base / 2))
