"""Convex solids with coloured faces, of which every object of the synthetic world is built.

A hull's faces are flat and convex, counter-clockwise seen from outside. Images are rendered from the faces' polygons,
lidar and occupancy from their planes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np

Color = tuple[float, float, float]  # blue, green, red, 0..1


class Material(IntEnum):
    """How a face is shaded; see shading.surface_color."""

    MATTE = 0
    PAINT = 1
    GLASS = 2
    FACADE = 3
    FOLIAGE = 4
    STRIPES = 5
    CAR_FRONT = 6
    CAR_REAR = 7
    BUS_SIDE = 8
    CARGO = 9
    MASONRY = 10
    LAMP = 11
    WHEEL = 12
    CLOTH = 13
    CONE = 14
    CAR_SIDE = 15
    SIDE_GLASS = 16
    LATTICE = 17
    #: this and the following materials have holes, between leaves or spokes
    LEAVES = 18
    SPOKES = 19


class Surface(NamedTuple):
    """The appearance of a face.

    material: one of Material
    color: the main colour
    accent: the material's second colour
    reflectance: for the lidar, 0..1
    """

    material: int
    color: Color
    accent: Color = (0.1, 0.1, 0.1)
    reflectance: float = 0.3


@dataclass(frozen=True)
class Hull:
    """A convex solid.

    vertices: [v, 3] m
    faces: vertex numbers of each face
    surfaces: one per face
    """

    vertices: np.ndarray
    faces: tuple[tuple[int, ...], ...]
    surfaces: tuple[Surface, ...]

    def moved(self, offset: Sequence[float], yaw: float = 0.0, pitch: float = 0.0) -> Hull:
        """Return the hull, turned about y by pitch, about z by yaw, then shifted.

        offset: [3] m
        yaw: rad
        pitch: nose down positive, rad
        """
        c, s, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
        return replace(self, vertices=self.vertices @ turn.T + np.asarray(offset, np.float64))


@dataclass(frozen=True)
class Part:
    """A hull of an object; it may swing about a y axis while the object walks.

    pivot: [3] point on the axis, m
    swing: amplitude, rad; 0 for a part that does not swing
    phase: within the walking cycle, rad
    """

    hull: Hull
    pivot: tuple[float, float, float] = (0.0, 0.0, 0.0)
    swing: float = 0.0
    phase: float = 0.0


@dataclass(frozen=True)
class Shape:
    """The parts of an object; x forward, y left, z up, standing on the ground z = 0.

    occupancy: its Occ3D class
    anchors: x of the two axles that follow the road, rear and front, m
    low, high: [3] extent over the whole walking cycle, m
    """

    parts: tuple[Part, ...]
    occupancy: int
    anchors: tuple[float, float] = (0.0, 0.0)
    low: np.ndarray = field(init=False)
    high: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Measure the extent, low and high [3], over the whole walking cycle."""
        points = np.concatenate([swung(part, side) for part in self.parts for side in (-1.0, 0.0, 1.0)])
        object.__setattr__(self, "low", points.min(axis=0))
        object.__setattr__(self, "high", points.max(axis=0))


def swung(part: Part, amount: float) -> np.ndarray:
    """Return a part's vertices [v, 3], swung by `amount` (-1..1) of its amplitude."""
    if not part.swing:
        return part.hull.vertices
    pivot = np.array(part.pivot)
    c, s = math.cos(part.swing * amount), math.sin(part.swing * amount)
    return (part.hull.vertices - pivot) @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]) + pivot


def loft(bottom: np.ndarray, top: np.ndarray, sides: Surface | Sequence[Surface], cap: Surface | None = None) -> Hull:
    """Return the hull between two rings; the caller ensures that its sides are flat.

    bottom, top: [n, 3] rings with equally many corners, both counter-clockwise seen from above, m
    sides: surface of all sides, or one per side; side i goes from corner i to i + 1
    cap: surface of both ends; None takes that of side 0
    """
    n = len(bottom)
    surfaces = [sides] * n if isinstance(sides, Surface) else list(sides)
    cap = cap or surfaces[0]
    faces = [tuple(reversed(range(n))), tuple(range(n, 2 * n))]
    faces += [(i, (i + 1) % n, n + (i + 1) % n, n + i) for i in range(n)]
    return Hull(np.concatenate([bottom, top]).astype(np.float64), tuple(faces), (cap, cap, *surfaces))


def block(
    center: Sequence[float],
    size: Sequence[float],
    surface: Surface,
    front: Surface | None = None,
    rear: Surface | None = None,
    top: Surface | None = None,
    taper: tuple[float, float] = (1.0, 1.0),
) -> Hull:
    """Return a box.

    center: [3] of its middle, m
    size: length, width, height, m
    surface: of all faces without one of their own
    front, rear: surface of the face at the end of x and at its beginning; None takes `surface`
    top: surface of top and bottom; None takes `surface`
    taper: factors that shrink the top along x and y
    """
    (cx, cy, cz), (length, width, height) = center, size
    ring = np.array([(0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5)]) * (length, width)
    bottom = np.c_[ring, np.full(4, -height / 2)] + (cx, cy, cz)
    above = np.c_[ring * taper, np.full(4, height / 2)] + (cx, cy, cz)
    return loft(bottom, above, (front or surface, surface, rear or surface, surface), top or surface)


def extrude(
    profile: Sequence[tuple[float, float]],
    half_width: float,
    side: Surface,
    edge: Callable[[float, float], Surface],
    lean: float = 0.0,
) -> Hull:
    """Return the solid between y = -half_width and +half_width over a convex profile.

    profile: points (x, z), m
    half_width: m
    side: surface of both sides
    edge: function that returns the surface of the face with the outward normal (nx, nz)
    lean: how far the sides come in per m of height, m
    """
    points = _convex(np.asarray(profile, np.float64))  # clockwise in (x, z): counter-clockwise seen from -y
    n, bottom = len(points), points[:, 1].min()
    y = half_width - lean * (points[:, 1] - bottom)
    vertices = np.concatenate([np.c_[points[:, 0], -y, points[:, 1]], np.c_[points[:, 0], y, points[:, 1]]])
    faces: list[tuple[int, ...]] = [tuple(range(n)), tuple(range(2 * n - 1, n - 1, -1))]
    surfaces = [side, side]
    for i in range(n):
        j = (i + 1) % n
        (dx, dz), length = points[j] - points[i], math.dist(points[i], points[j])
        faces.append((i, n + i, n + j, j))
        surfaces.append(edge(dz / length, -dx / length))
    return Hull(vertices, tuple(faces), tuple(surfaces))


def _convex(points: np.ndarray) -> np.ndarray:
    """Return the corners of the convex hull of points [n, 2], counter-clockwise (Andrew's monotone chain)."""
    ordered = sorted(map(tuple, points.tolist()))

    def chain(run: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
        kept: list[tuple[float, ...]] = []
        for p in run:
            while len(kept) > 1:
                (ax, ay), (bx, by) = kept[-2], kept[-1]
                if (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax) > 1e-9:
                    break
                kept.pop()
            kept.append(p)
        return kept[:-1]

    return np.array(chain(ordered) + chain(ordered[::-1]))


def wheel(x: float, y: float, radius: float, width: float, surface: Surface, corners: int = 12) -> Hull:
    """Return a wheel that stands on the ground, its axle along y; the tread is black.

    x, y: of its middle, m
    radius, width: m
    surface: of the discs
    corners: number of corners that approximate the circle
    """
    angle = 2 * np.pi * np.arange(corners) / corners
    profile = [(x + radius * math.cos(a), radius + radius * math.sin(a)) for a in angle]
    tread = Surface(Material.MATTE, (0.06, 0.06, 0.06), reflectance=0.05)
    return extrude(profile, width / 2, surface, lambda nx, nz: tread).moved((0, y, 0))


def ball(center: Sequence[float], radii: Sequence[float], surface: Surface, around: int = 8, rings: int = 5) -> Hull:
    """Return an ellipsoid made of flat faces.

    center: [3] m
    radii: [3] m
    around, rings: number of faces around it, and of rows of faces
    """
    vertices = [(0.0, 0.0, -1.0)]
    for k in range(1, rings):
        latitude = math.pi * (k / rings - 0.5)
        for a in 2 * np.pi * np.arange(around) / around:
            vertices.append((math.cos(latitude) * math.cos(a), math.cos(latitude) * math.sin(a), math.sin(latitude)))
    vertices.append((0.0, 0.0, 1.0))
    faces: list[tuple[int, ...]] = []
    last = len(vertices) - 1
    for i in range(around):
        j = (i + 1) % around
        faces.append((0, 1 + j, 1 + i))
        faces.append((last, last - around + i, last - around + j))
        for k in range(rings - 2):
            low, high = 1 + k * around, 1 + (k + 1) * around
            faces.append((low + i, low + j, high + j, high + i))
    return Hull(np.array(vertices) * radii + np.asarray(center), tuple(faces), (surface,) * len(faces))


def dome(radii: Sequence[float], surface: Surface, around: int = 8, rings: int = 4) -> Hull:
    """Return the upper half of an ellipsoid, standing on the ground; arguments as in ball."""
    angle = 2 * np.pi * np.arange(around) / around
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(around)], axis=1)
    vertices = []
    for latitude in np.linspace(0, np.pi / 2, rings + 1)[:-1]:
        vertices.append(ring * math.cos(latitude) + (0, 0, math.sin(latitude)))
    last = around * rings
    faces: list[tuple[int, ...]] = [tuple(reversed(range(around)))]
    for i in range(around):
        j = (i + 1) % around
        faces += [
            (k * around + i, k * around + j, (k + 1) * around + j, (k + 1) * around + i) for k in range(rings - 1)
        ]
        faces.append((last - around + i, last - around + j, last))
    points = np.concatenate([*vertices, [(0, 0, 1)]]) * radii
    return Hull(points, tuple(faces), (surface,) * len(faces))


def column(
    center: Sequence[float], radius: float, height: float, surface: Surface, top: float = 1.0, corners: int = 8
) -> Hull:
    """Return an upright prism.

    center: [3] of its foot, m
    radius, height: m
    top: factor that shrinks the top
    corners: number of corners of the cross-section
    """
    angle = 2 * np.pi * (np.arange(corners) + 0.5) / corners
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius
    foot = np.asarray(center, np.float64)
    return loft(np.c_[ring, np.zeros(corners)] + foot, np.c_[ring * top, np.full(corners, height)] + foot, surface)


def bar(start: Sequence[float], end: Sequence[float], thickness: float, surface: Surface) -> Hull:
    """Return a bar with a square cross-section.

    start, end: [3] m
    thickness: m
    """
    a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
    along = (b - a) / np.linalg.norm(b - a)
    aside = np.cross(along, (0.0, 1.0, 0.0) if abs(along[1]) < 0.9 else (1.0, 0.0, 0.0))
    aside /= np.linalg.norm(aside)
    up = np.cross(along, aside)
    ring = np.array([u * aside + v * up for u, v in ((1, 1), (-1, 1), (-1, -1), (1, -1))]) * thickness / 2
    return loft(a + ring, b + ring, surface)
