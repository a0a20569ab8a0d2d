"""The ground as a function of position: class, height and colour of road, markings, kerbs, pavements and land beyond.

Images, lidar, occupancy and the map mask all use the same functions. Compiled with numba.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.synth.compiled import hot, kernel
from bev_perception.synth.roads import CELL, EXIT, KERB, REACH, STOP_LINE, ZEBRA, Street, StreetMap

ROAD, OTHER_FLAT, PAVEMENT, TERRAIN = (
    OCC3D_CLASSES.index(name) for name in ("driveable_surface", "other_flat", "sidewalk", "terrain")
)
#: texels along each side of the texture, a power of two
TEXTURE = 512
#: m along a street, length of a lot; the land beyond the pavement is of one kind throughout a lot
LOT = 28.0
#: m, blending distance that rounds the corners where two streets meet
ROUNDING = 9.0
#: m from a crossing street's edge at which the median strip ends
MEDIAN_GAP = 5.2
_MAX_LINES = 16


class Ground(NamedTuple):
    """What the kernels know of the ground; R streets, the main street first.

    raster: [H, W, 7] at every CELL: the four layers of StreetMap.raster, distance from the road's edge (m), number of
        the crossing street nearby (0: none), width of the pavement (m)
    streets: [R, 6] x, y (m), cos and sin of the heading at a crossing street's start, its half width, its pavement (m)
    extents: [R, 2] first and last s, m
    medians: [R] width of the median strip, m; 0: none
    lines: [R, _MAX_LINES, 5] markings: d, half width, period (m; 0: solid), share painted, 1 for yellow and 0 for white
    line_counts: [R] number of markings
    hand: 1 where traffic drives on the right, -1 on the left
    texture: [TEXTURE, TEXTURE, 2] int8 noise, fine and coarse
    seed: of the lots
    wear: of the markings, 0..1
    tone: [3] colour of the asphalt: blue, green, red
    plots: [3] probabilities of grass, paving and soil on a lot
    """

    raster: np.ndarray
    streets: np.ndarray
    extents: np.ndarray
    medians: np.ndarray
    lines: np.ndarray
    line_counts: np.ndarray
    hand: float
    texture: np.ndarray
    seed: int
    wear: float
    tone: np.ndarray
    plots: np.ndarray


def make_ground(streets: StreetMap, rng: np.random.Generator) -> Ground:
    """Return the ground of a scene."""
    all_streets = [streets.main, *(junction.street for junction in streets.junctions)]
    rows = [
        (*s.points[0, :2], math.cos(s.points[0, 2]), math.sin(s.points[0, 2]), s.half_width, s.pavement)
        for s in all_streets
    ]
    lines = np.zeros((len(all_streets), _MAX_LINES, 5))
    counts = np.zeros(len(all_streets), np.int64)
    for k, street in enumerate(all_streets):
        drawn = _lines_of(street)
        lines[k, : len(drawn)], counts[k] = drawn, len(drawn)
    base = rng.uniform(0.24, 0.38)
    tone = base * np.array([1.0 + rng.uniform(-0.02, 0.05), 1.0, 1.0 + rng.uniform(-0.04, 0.02)])
    raster = np.zeros((*(bare := streets.raster()).shape[:2], 7), np.float32)
    raster[..., :4] = bare
    extents = np.array([(s.start, s.end) for s in all_streets])
    _fill_raster(raster, np.array(rows), extents)
    return Ground(
        raster=raster,
        streets=np.array(rows),
        extents=extents,
        medians=np.array([s.median for s in all_streets]),
        lines=lines,
        line_counts=counts,
        hand=float(streets.main.hand),
        texture=_texture(),
        seed=streets.seed,
        wear=float(rng.uniform(0.05, 0.45)),
        tone=tone,
        plots=rng.dirichlet((2.0, 1.5, 0.5)),
    )


def _lines_of(street: Street) -> np.ndarray:
    """Return the markings along a street, [n, 5] as in Ground.lines."""
    half = street.median / 2
    lines = []
    if street.median:
        lines += [(sign * (half + 0.15), 0.07, 0.0, 1.0, 1.0) for sign in (-1, 1)]
    elif street.lanes > 1:
        lines += [(sign * 0.14, 0.06, 0.0, 1.0, 1.0) for sign in (-1, 1)]
    else:
        lines.append((0.0, 0.07, 6.0, 0.5, 1.0))
    for sign in (-1, 1):
        for k in range(1, street.lanes):
            lines.append((sign * (half + k * street.lane), 0.07, 9.0, 0.34, 0.0))
        if street.parking:
            lines.append((sign * (half + street.lanes * street.lane), 0.06, 0.0, 1.0, 0.0))
    return np.array(lines)


def _texture() -> np.ndarray:
    """Return noise that repeats without a seam, as in Ground.texture."""
    noise = np.random.default_rng(0).normal(0, 1, (TEXTURE, TEXTURE)).astype(np.float32)
    layers = []
    for sigma in (0.7, 6.0):
        wide = cv2.GaussianBlur(np.tile(noise, (3, 3)), (0, 0), sigma)[TEXTURE : 2 * TEXTURE, TEXTURE : 2 * TEXTURE]
        layers.append(np.clip(wide / (2.5 * wide.std()), -1, 1))
    return np.rint(127 * np.stack(layers, axis=-1)).astype(np.int8)


@hot
def coverage(distance: float, half_width: float, footprint: float) -> float:
    """Return the share of a pixel's footprint that a stripe covers.

    distance: between the middles of pixel and stripe, m
    half_width: of the stripe, m
    footprint: of the pixel, m
    """
    reach = 0.5 * footprint
    low = max(distance - reach, -half_width)
    high = min(distance + reach, half_width)
    return max(0.0, high - low) / max(footprint, 1e-6)


@hot
def texture_at(texture: np.ndarray, layer: int, u: float, v: float) -> float:
    """Return the noise (-1..1) of a texture's layer at u, v (texels)."""
    return texture[math.floor(v) & (TEXTURE - 1), math.floor(u) & (TEXTURE - 1), layer] * (1.0 / 127.0)


@hot
def hashed(a: int, b: int, c: int) -> float:
    """Return a pseudo-random number in 0..1, computed from three integers."""
    h = (a * 73856093) ^ (b * 19349663) ^ (c * 83492791)
    h = (h ^ (h >> 13)) * 1274126177 & 0x7FFFFFFF
    h = (h ^ (h >> 16)) & 0xFFFF
    return h / 65536.0


@hot
def crossing_coordinates(
    streets: np.ndarray, extents: np.ndarray, number: int, x: float, y: float
) -> tuple[float, float]:
    """Return s and d (m) of the point x, y on a crossing street; numbers begin at 1."""
    dx, dy, c, sn = x - streets[number, 0], y - streets[number, 1], streets[number, 2], streets[number, 3]
    return extents[number, 0] + dx * c + dy * sn, dy * c - dx * sn


@kernel
def _fill_raster(raster: np.ndarray, streets: np.ndarray, extents: np.ndarray) -> None:
    """Fill in the layers of Ground.raster that follow from s and d of the main street."""
    for j in range(raster.shape[0]):
        for i in range(raster.shape[1]):
            x, y = i * CELL, j * CELL
            d = abs(raster[j, i, 1])
            edge, pavement, near, nearest = d - streets[0, 4], streets[0, 5], 0, 25.0
            for k in range(1, len(streets)):
                sk, dk = crossing_coordinates(streets, extents, k, x, y)
                gap = abs(dk) - streets[k, 4]
                if gap < nearest and extents[k, 0] - 25.0 < sk < extents[k, 1]:
                    near, nearest = k, gap
                if d > streets[0, 4] + streets[0, 5] + 4.0 and abs(dk) < 30.0 and sk > extents[k, 0] - 5.0:
                    pavement = streets[k, 5]
                first = extents[k, 0] - (EXIT if extents[k, 0] < 0 else 0.0)  # 0: begins at the main street
                other = max(gap, sk - extents[k, 1] - EXIT, first - sk)
                # the smooth minimum of two distances (Quilez, "smooth minimum", quadratic)
                h = max(ROUNDING - abs(edge - other), 0.0) / ROUNDING
                edge = min(edge, other) - h * h * ROUNDING * 0.25
            raster[j, i, 4], raster[j, i, 5], raster[j, i, 6] = edge, near, pavement


@hot
def main_coordinates(ground: Ground, x: float, y: float) -> tuple[float, float, float, float]:
    """Return s, d (m), and cos and sin of the main street's heading at x, y; d is 1000 far from the main street."""
    raster = ground.raster
    u, v = x / CELL, y / CELL
    if not (0.0 <= u < raster.shape[1] - 1.001 and 0.0 <= v < raster.shape[0] - 1.001):
        return 0.0, 1e3, 1.0, 0.0
    i, j = int(u), int(v)
    a, b = u - i, v - j
    w00, w10, w01, w11 = (1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b
    d = w00 * raster[j, i, 1] + w10 * raster[j, i + 1, 1] + w01 * raster[j + 1, i, 1] + w11 * raster[j + 1, i + 1, 1]
    if abs(d) > REACH:
        return 0.0, 1e3, 1.0, 0.0
    s = w00 * raster[j, i, 0] + w10 * raster[j, i + 1, 0] + w01 * raster[j + 1, i, 0] + w11 * raster[j + 1, i + 1, 0]
    return s, d, raster[j, i, 2], raster[j, i, 3]


@hot
def edge_distance(ground: Ground, x: float, y: float) -> float:
    """Return the distance (m) of x, y from the road's edge, negative on the road; corners of junctions are round."""
    raster = ground.raster
    u, v = x / CELL, y / CELL
    if not (0.0 <= u < raster.shape[1] - 1.001 and 0.0 <= v < raster.shape[0] - 1.001):
        return 1e3
    i, j = int(u), int(v)
    a, b = u - i, v - j
    return (1 - b) * ((1 - a) * raster[j, i, 4] + a * raster[j, i + 1, 4]) + b * (
        (1 - a) * raster[j + 1, i, 4] + a * raster[j + 1, i + 1, 4]
    )


@hot
def _nearest(ground: Ground, x: float, y: float, layer: int) -> float:
    """Return the value of a raster layer in the cell nearest to x, y; 0 outside the raster."""
    i, j = int(x / CELL + 0.5), int(y / CELL + 0.5)
    if 0 <= i < ground.raster.shape[1] and 0 <= j < ground.raster.shape[0]:
        return ground.raster[j, i, layer]
    return 0.0


@hot
def land(ground: Ground, s: float, d: float) -> int:
    """Return the kind of land beyond the pavement: 0 grass, 1 paving, 2 soil."""
    chance = hashed(math.floor(s / LOT), 1 if d > 0 else 2, ground.seed)
    return 0 if chance < ground.plots[0] else 1 if chance < ground.plots[0] + ground.plots[1] else 2


@hot
def kind_of(ground: Ground, x: float, y: float, edge: float, s: float, d: float) -> int:
    """Return the Occ3D class of the ground at x, y.

    edge: result of edge_distance at x, y, m
    s, d: results of main_coordinates at x, y, m
    """
    if edge < 0:
        if abs(d) < 0.5 * ground.medians[0]:
            k = int(_nearest(ground, x, y, 5))
            if k == 0 or abs(crossing_coordinates(ground.streets, ground.extents, k, x, y)[1]) > (
                ground.streets[k, 4] + MEDIAN_GAP
            ):
                return OTHER_FLAT
        return ROAD
    if edge < _nearest(ground, x, y, 6):
        return PAVEMENT
    return OTHER_FLAT if abs(d) < 900.0 and land(ground, s, d) == 1 else TERRAIN


@hot
def kind_at(ground: Ground, x: float, y: float) -> tuple[int, float]:
    """Return the Occ3D class and the height (m) of the ground at x, y."""
    edge = edge_distance(ground, x, y)
    s, d, _, _ = main_coordinates(ground, x, y)
    return kind_of(ground, x, y, edge, s, d), 0.0 if edge < 0 else KERB


@hot
def _painted(ground: Ground, k: int, s: float, d: float, across: float, along: float) -> tuple[float, float]:
    """Return the shares of a footprint that the white and the yellow lines of street k cover.

    s, d: position on the street, m
    across, along: size of the footprint across and along the street, m
    """
    white, yellow, lines = 0.0, 0.0, ground.lines
    for i in range(ground.line_counts[k]):
        if abs(d - lines[k, i, 0]) > lines[k, i, 1] + 0.5 * across:
            continue
        share, period = coverage(d - lines[k, i, 0], lines[k, i, 1], across), lines[k, i, 2]
        if period > 0:
            place = s - period * math.floor(s / period + 0.5)
            half = 0.5 * period * lines[k, i, 3]
            share *= coverage(place, half, along) if along < period else lines[k, i, 3]
        if lines[k, i, 4] > 0:
            yellow += share
        else:
            white += share
    return white, yellow


@hot
def _zebra(s: float, d: float, half: float, gap: float, approach: float, a: float, b: float) -> float:
    """Return the share of a footprint that a zebra crossing or a stop line covers.

    s, d: position on the street with the zebra crossing, m
    half: half width of that street, m
    gap: distance from the edge of the other street of the junction, m
    approach: positive where traffic approaches the junction; only there is a stop line
    a, b: size of the footprint across and along the street, m
    """
    middle, reach = 0.5 * (ZEBRA[0] + ZEBRA[1]), 0.5 * (ZEBRA[1] - ZEBRA[0])
    share = coverage(gap - middle, reach, b)
    if share > 0 and abs(d) < half - 0.3:
        place = d - math.floor(d / 1.0 + 0.5)
        return share * (coverage(place, 0.25, a) if a < 1.0 else 0.5)
    if approach > 0 and abs(d) < half - 0.2:
        return coverage(gap - 0.5 * (STOP_LINE[0] + STOP_LINE[1]), 0.5 * (STOP_LINE[1] - STOP_LINE[0]), b)
    return 0.0


@hot
def road_paint(
    ground: Ground,
    x: float,
    y: float,
    s: float,
    d: float,
    c: float,
    sn: float,
    rx: float,
    ry: float,
    far: float,
    near: float,
) -> tuple[float, float, float]:
    """Return the shares of a pixel that white paint, yellow paint and the median cover.

    s, d, c, sn: results of main_coordinates at x, y
    rx, ry: horizontal direction of sight
    far, near: the pixel's footprint along and across the direction of sight, m
    """
    along_view, aside_view = abs(c * rx + sn * ry), abs(c * ry - sn * rx)
    across, along = far * aside_view + near * along_view, far * along_view + near * aside_view
    half = ground.streets[0, 4]
    white, yellow, median = 0.0, 0.0, 0.0
    off_main, off_cross = abs(d) - half, 1e3
    k = int(_nearest(ground, x, y, 5))
    if k > 0:
        sk, dk = crossing_coordinates(ground.streets, ground.extents, k, x, y)
        off_cross = abs(dk) - ground.streets[k, 4]
        ck, snk = ground.streets[k, 2], ground.streets[k, 3]
        if off_main < 0 and 0 < off_cross < 8.0:
            beyond = dk * (ck * sn - snk * c)  # positive where s is larger than at the junction
            white += _zebra(s, d, half, off_cross, d * ground.hand * beyond, across, along)
        elif off_main >= 0 and off_cross < 0:
            along_view, aside_view = abs(ck * rx + snk * ry), abs(ck * ry - snk * rx)
            across_k, along_k = far * aside_view + near * along_view, far * along_view + near * aside_view
            if off_main < 8.0:
                white += _zebra(sk, dk, ground.streets[k, 4], off_main, dk * ground.hand * sk, across_k, along_k)
            if off_main > STOP_LINE[0]:
                w, ye = _painted(ground, k, sk, dk, across_k, along_k)
                white, yellow = white + w, yellow + ye
    if off_main < 0 and off_cross > STOP_LINE[0]:
        w, ye = _painted(ground, 0, s, d, across, along)
        white, yellow = white + w, yellow + ye
        if ground.medians[0] > 0 and off_cross > MEDIAN_GAP:
            median = coverage(d, 0.5 * ground.medians[0], across)
    return min(white, 1.0), min(yellow, 1.0), median


@kernel
def heights_at(ground: Ground, places: np.ndarray) -> np.ndarray:
    """Return the ground's heights [n] (m) at the x, y of places [n, 2 or more]."""
    heights = np.empty(len(places))
    for i in range(len(places)):
        heights[i] = kind_at(ground, places[i, 0], places[i, 1])[1]
    return heights
