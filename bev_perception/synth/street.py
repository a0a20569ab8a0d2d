"""Shapes along a street: cones, barriers, bins, houses, walls, trees, hedges, lamps, signals, signs, benches."""

from __future__ import annotations

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
    dome,
    loft,
)

_MANMADE, _VEGETATION = OCC3D_CLASSES.index("manmade"), OCC3D_CLASSES.index("vegetation")
_STEEL = Surface(Material.MATTE, (0.35, 0.36, 0.36), reflectance=0.5)
_WALLS: tuple[Color, ...] = (
    (0.30, 0.38, 0.55),
    (0.35, 0.45, 0.60),
    (0.62, 0.68, 0.72),
    (0.50, 0.52, 0.54),
    (0.45, 0.55, 0.66),
    (0.70, 0.72, 0.70),
    (0.40, 0.36, 0.34),
    (0.24, 0.28, 0.42),
)
_LEAVES: tuple[Color, ...] = ((0.16, 0.38, 0.27), (0.13, 0.31, 0.21), (0.20, 0.44, 0.36), (0.16, 0.34, 0.36))


def _shape(hulls: list[Hull], occupancy: int) -> Shape:
    return Shape(tuple(Part(hull) for hull in hulls), occupancy)


def _pick(rng: np.random.Generator, colors: tuple[Color, ...]) -> Color:
    b, g, r = (np.array(colors[rng.integers(len(colors))]) * rng.uniform(0.85, 1.15)).tolist()
    return b, g, r


def traffic_cone(rng: np.random.Generator) -> Shape:
    """Return an orange cone with one white band and a black foot."""
    height = rng.uniform(0.7, 1.0)
    skin = Surface(Material.CONE, (0.08, 0.32, 0.92), (0.85, 0.85, 0.85), 0.6)
    foot = Surface(Material.MATTE, (0.07, 0.07, 0.07))
    hulls = [block((0, 0, 0.03), (0.40, 0.40, 0.06), foot), column((0, 0, 0.06), 0.16, height - 0.06, skin, 0.22)]
    return _shape(hulls, OCC3D_CLASSES.index("traffic_cone"))


def barrier(rng: np.random.Generator, kind: str) -> Shape:
    """Return a barrier across x.

    kind: concrete (a Jersey barrier), water (filled plastic) or board (striped)
    """
    if kind == "board":
        stripes = Surface(Material.STRIPES, (0.08, 0.32, 0.92), (0.85, 0.85, 0.85), 0.7)
        hulls = [block((0, 0, z), (0.06, 1.9, 0.22), stripes) for z in (0.95, 0.60)]
        hulls += [bar((x, y, 0), (0, y, 1.02), 0.07, _STEEL) for y in (-0.75, 0.75) for x in (-0.3, 0.3)]
        return _shape(hulls, OCC3D_CLASSES.index("barrier"))
    color: Color = (
        (0.58, 0.60, 0.62) if kind == "concrete" else ((0.08, 0.32, 0.92), (0.85, 0.85, 0.85))[rng.integers(2)]
    )
    skin = Surface(Material.MASONRY if kind == "concrete" else Material.PAINT, color, reflectance=0.4)

    def ring(x: float, z: float) -> np.ndarray:
        return np.array([(x, -1.0, z), (x, 1.0, z), (-x, 1.0, z), (-x, -1.0, z)])

    hulls = [loft(ring(0.3, 0), ring(0.3, 0.1), skin), loft(ring(0.3, 0.1), ring(0.15, 0.4), skin)]
    hulls.append(loft(ring(0.15, 0.4), ring(0.09, 1.0), skin))
    return _shape(hulls, OCC3D_CLASSES.index("barrier"))


def bin_(rng: np.random.Generator) -> Shape:
    """Return a wheeled bin, in nuScenes a pushable object."""
    colors: tuple[Color, ...] = ((0.20, 0.35, 0.12), (0.45, 0.25, 0.10), (0.15, 0.15, 0.15))
    skin = Surface(Material.PAINT, _pick(rng, colors))
    lid = Surface(Material.MATTE, _pick(rng, colors))
    hulls = [
        loft(_square(0.46, 0.05), _square(0.60, 0.95), skin),
        block((0, 0, 1.0), (0.64, 0.62, 0.1), lid),
    ]
    return _shape(hulls, OCC3D_CLASSES.index("others"))


def _square(width: float, z: float) -> np.ndarray:
    return np.array([(1, -1, 0), (1, 1, 0), (-1, 1, 0), (-1, -1, 0)]) * width / 2 + (0, 0, z)


def building(rng: np.random.Generator, length: float, depth: float, height: float) -> Shape:
    """Return a house, its front on y = 0 and its back on y = -depth.

    length: along x, m
    depth, height: m
    """
    glassy = height > 14 and rng.random() < 0.35
    wall = _pick(rng, ((0.55, 0.50, 0.42),) if glassy else _WALLS)
    pane = _pick(rng, ((0.42, 0.36, 0.30), (0.28, 0.24, 0.20), (0.20, 0.18, 0.16)))
    front = Surface(Material.FACADE, wall, pane, 0.35)
    roof = Surface(Material.MASONRY, (0.30, 0.31, 0.33))
    body = block((0, -depth / 2, height / 2), (length, depth, height), front, front, front, roof)
    hulls = [body]
    if height < 8 and rng.random() < 0.6:  # a house with a gable roof
        tiles = Surface(Material.MASONRY, _pick(rng, ((0.16, 0.20, 0.40), (0.22, 0.22, 0.24), (0.18, 0.26, 0.38))))
        ring = np.array([(0.5, -1.03), (0.5, 0.03), (-0.5, 0.03), (-0.5, -1.03)]) * (length + 0.6, depth)
        ridge = np.array([(0.35, -0.52), (0.35, -0.48), (-0.35, -0.48), (-0.35, -0.52)]) * (length, depth)
        rise = rng.uniform(1.8, 3.2)
        hulls.append(loft(np.c_[ring, np.full(4, height)], np.c_[ridge, np.full(4, height + rise)], tiles))
    else:
        trim = Surface(Material.MASONRY, _pick(rng, ((0.55, 0.57, 0.58), (0.3, 0.3, 0.32))))
        hulls.append(block((0, -depth / 2, height + 0.3), (length + 0.3, depth + 0.3, 0.6), trim))
        if rng.random() < 0.5:
            at = (rng.uniform(-0.25, 0.25) * length, -depth / 2, height + 1.6)
            hulls.append(block(at, (0.25 * length, 0.3 * depth, 2.2), Surface(Material.MASONRY, wall)))
    if rng.random() < 0.5:  # an awning or a porch over the ground floor
        awning = Surface(
            Material.MATTE, _pick(rng, ((0.15, 0.15, 0.5), (0.2, 0.4, 0.15), (0.4, 0.25, 0.12), (0.6,) * 3))
        )
        x, span = rng.uniform(-0.2, 0.2) * length, min(0.4 * length, 5.0)
        ring = np.array([(0.5, 0.0), (0.5, 1.2), (-0.5, 1.2), (-0.5, 0.0)]) * (span, 1.0) + (x, 0.0)
        low = np.c_[ring, [2.9, 2.6, 2.6, 2.9]]
        hulls.append(loft(low, low + np.array([0, 0, 0.15]), awning))
    return _shape(hulls, _MANMADE)


def wall(rng: np.random.Generator, length: float) -> Shape:
    """Return a garden wall or a fence along x, `length` m long."""
    if rng.random() < 0.5:
        stone = Surface(Material.MASONRY, _pick(rng, _WALLS))
        return _shape([block((0, 0, 0.7), (length, 0.25, 1.4), stone)], _MANMADE)
    rails = [block((0, 0, z), (length, 0.05, 0.08), _STEEL) for z in (0.3, 1.1)]
    posts = [
        block((x, 0, 0.6), (0.06, 0.06, 1.2), _STEEL)
        for x in np.linspace(-length / 2, length / 2, int(length / 1.2) + 1)
    ]
    return _shape(rails + posts, _MANMADE)


def tree(rng: np.random.Generator, conifer: bool = False) -> Shape:
    """Return a tree with a round crown, or with a pointed one if it is a conifer."""
    bark = Surface(Material.MASONRY, (0.16, 0.21, 0.27), reflectance=0.3)
    shade, dark = _greens(rng)
    leaves, core = Surface(Material.LEAVES, shade, dark, 0.45), Surface(Material.FOLIAGE, dark, dark, 0.45)
    trunk, size = rng.uniform(2.0, 3.0), rng.uniform(1.5, 2.6)
    hulls = [column((0, 0, 0), rng.uniform(0.12, 0.22), trunk + size, bark, 0.6, 6)]
    if conifer:
        for k, width in enumerate((1.0, 0.75, 0.5)):
            foot = (0, 0, trunk * 0.5 + 1.3 * k * size / 2)
            hulls.append(column(foot, 0.8 * size * width, 1.4 * size, leaves, 0.25))
            hulls.append(column(foot, 0.64 * size * width, 1.3 * size, core, 0.2, 6))
        return _shape(hulls, _VEGETATION)
    for _ in range(4):
        at = rng.normal(0, 0.36, 3) * size
        middle, radii = (at[0], at[1], trunk + size + 0.8 * at[2]), size * rng.uniform(0.55, 0.85, 3)
        hulls.append(ball(middle, radii.tolist(), leaves, 9, 6))
        hulls.append(ball(middle, (0.80 * radii).tolist(), core, 6, 4))
    return _shape(hulls, _VEGETATION)


def _greens(rng: np.random.Generator) -> tuple[Color, Color]:
    """Return a green for leaves in the light, and one for leaves in the shade."""
    b, g, r = light = _pick(rng, _LEAVES)
    return light, (0.5 * b, 0.52 * g, 0.5 * r)


def hedge(rng: np.random.Generator, length: float) -> Shape:
    """Return a hedge along x, `length` m long."""
    leaves = Surface(Material.FOLIAGE, *_greens(rng), 0.45)
    height = rng.uniform(0.7, 1.5)
    return _shape(
        [block((0, 0, height / 2), (length, rng.uniform(0.6, 1.0), height), leaves, taper=(0.97, 0.8))], _VEGETATION
    )


def bush(rng: np.random.Generator) -> Shape:
    """Return a bush."""
    light, dark = _greens(rng)
    leaves, core = Surface(Material.LEAVES, light, dark, 0.45), Surface(Material.FOLIAGE, dark, dark, 0.45)
    wide, high = rng.uniform(0.6, 1.2), rng.uniform(0.8, 1.5)
    radii = (wide, wide * rng.uniform(0.8, 1.2), high)
    return _shape([dome(radii, leaves), dome([0.85 * r for r in radii], core, 6, 3)], _VEGETATION)


def lamp_post(rng: np.random.Generator) -> Shape:
    """Return a street lamp whose arm extends along x."""
    height = rng.uniform(5.5, 8.0)
    lamp = Surface(Material.LAMP, (0.75, 0.9, 0.95))
    hulls = [
        column((0, 0, 0), 0.11, height, _STEEL, 0.6),
        bar((0, 0, height - 0.1), (1.8, 0, height + 0.2), 0.09, _STEEL),
    ]
    head = block((1.9, 0, height + 0.18), (0.7, 0.25, 0.12), _STEEL)
    # the first surface is the bottom's, which glows
    glowing = Hull(head.vertices, head.faces, (lamp, *head.surfaces[1:]))
    return _shape([*hulls, glowing], _MANMADE)


def signal_post() -> Shape:
    """Return a traffic signal that faces x: green, amber, red from bottom to top, all of them lit."""
    case = Surface(Material.MATTE, (0.10, 0.12, 0.10))
    hulls = [column((0, 0, 0), 0.09, 3.6, _STEEL), block((0.05, 0, 3.1), (0.3, 0.34, 1.0), case)]
    for z, color in ((2.78, (0.55, 0.90, 0.15)), (3.10, (0.1, 0.7, 0.95)), (3.42, (0.10, 0.10, 0.95))):
        hulls.append(block((0.22, 0, z), (0.06, 0.2, 0.2), case, front=Surface(Material.LAMP, color)))
    return _shape(hulls, _MANMADE)


def sign_post(rng: np.random.Generator) -> Shape:
    """Return a road sign that faces x."""
    board: Color = ((0.1, 0.1, 0.75), (0.6, 0.3, 0.1), (0.9, 0.9, 0.9), (0.1, 0.7, 0.85))[rng.integers(4)]
    plate = Surface(Material.PAINT, board, reflectance=0.9)
    size = rng.uniform(0.5, 0.75)
    hulls = [
        column((0, 0, 0), 0.04, 2.7, _STEEL, corners=6),
        block((0.05, 0, 2.4), (0.03, size, size), _STEEL, front=plate),
    ]
    return _shape(hulls, _MANMADE)


def bench(rng: np.random.Generator) -> Shape:
    """Return a bench along y; people sitting on it look along x."""
    wood = Surface(Material.MATTE, (0.16, 0.28, 0.42))
    hulls = [block((-0.02, 0, 0.40), (0.42, 1.6, 0.08), wood), block((-0.25, 0, 0.68), (0.06, 1.6, 0.4), wood)]
    hulls += [block((-0.05, y, 0.18), (0.4, 0.08, 0.36), _STEEL) for y in (-0.6, 0.6)]
    return _shape(hulls, _MANMADE)


def shelter(rng: np.random.Generator) -> Shape:
    """Return a bus shelter along y, open towards x."""
    glass = Surface(Material.GLASS, (0.3, 0.28, 0.25), reflectance=0.1)
    poster = Surface(Material.CARGO, _pick(rng, _WALLS), (0.2, 0.3, 0.7))
    hulls = [block((0.2, 0, 2.45), (1.5, 4.0, 0.1), _STEEL), block((-0.5, 0, 1.3), (0.04, 4.0, 2.0), glass)]
    hulls += [block((0.1, 1.95, 1.25), (1.1, 0.08, 2.1), _STEEL, poster, poster)]
    hulls += [column((x, y, 0), 0.05, 2.4, _STEEL, corners=6) for x in (-0.5, 0.8) for y in (-1.9,)]
    return _shape(hulls, _MANMADE)
