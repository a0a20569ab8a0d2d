"""The appearance of surfaces, ground and sky: small procedural textures under sun, sky, haze and dusk.

Compiled with numba. Colours are blue, green, red, where 0..1 is the range of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from bev_perception.synth.compiled import hot
from bev_perception.synth.ground import (
    OTHER_FLAT,
    PAVEMENT,
    Ground,
    coverage,
    hashed,
    kind_of,
    land,
    main_coordinates,
    road_paint,
    texture_at,
)
from bev_perception.synth.shapes import Material

#: sines of the elevation of the panorama's first row, the lowest, and of its last
SKY_LOW, SKY_HIGH = -0.03, 0.85
_SKY_SHAPE = (384, 2048)
#: how often each kind of light and weather is drawn; night only where it is asked for
_SHARES = {"sunny": 0.42, "cloudy": 0.28, "dusk": 0.13, "rain": 0.17, "night": 0.1}

_MATTE, _PAINT, _GLASS, _FACADE, _FOLIAGE, _STRIPES = (int(m) for m in list(Material)[:6])
_CAR_FRONT, _CAR_REAR, _BUS_SIDE, _CARGO, _MASONRY, _LAMP = (int(m) for m in list(Material)[6:12])
_WHEEL, _CLOTH, _CONE, _CAR_SIDE, _SIDE_GLASS, _LATTICE = (int(m) for m in list(Material)[12:18])
_LEAVES, _SPOKES = int(Material.LEAVES), int(Material.SPOKES)


class Light(NamedTuple):
    """Light and weather of a scene.

    sun: [3] unit vector towards the sun
    sunshine: [3] how strongly the sun lights a surface: blue, green, red
    skylight: [3] how strongly the sky lights a surface, likewise
    haze: [3] its colour
    haze_density: 1/m
    wet: wetness of the ground, 0..1
    night: darkness, 0..1
    panorama: [h, w, 3] float32, the sky; azimuth along the columns
    """

    sun: np.ndarray
    sunshine: np.ndarray
    skylight: np.ndarray
    haze: np.ndarray
    haze_density: float
    wet: float
    night: float
    panorama: np.ndarray


def make_light(rng: np.random.Generator, kinds: Sequence[str] = ()) -> tuple[Light, str]:
    """Sample light and weather; also return the name of what was drawn.

    kinds: to draw from, of "sunny", "cloudy", "dusk", "rain" and "night"; empty: all but night
    """
    shares = {kind: _SHARES[kind] for kind in kinds or ("sunny", "cloudy", "dusk", "rain")}
    kind = str(rng.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values())))
    low = {"sunny": 0.45, "cloudy": 0.6, "dusk": 0.12, "rain": 0.7, "night": 0.5}[kind]
    azimuth = rng.uniform(-math.pi, math.pi)
    elevation = rng.uniform(low, low + (0.08 if kind == "dusk" else 0.5))
    sun = np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    sunshine, skylight, horizon, zenith = {
        "sunny": ((0.58, 0.66, 0.72), (0.58, 0.54, 0.50), (0.90, 0.84, 0.78), (0.82, 0.58, 0.36)),
        "cloudy": ((0.10, 0.11, 0.11), (0.84, 0.82, 0.80), (0.84, 0.83, 0.82), (0.66, 0.64, 0.62)),
        "dusk": ((0.10, 0.16, 0.26), (0.44, 0.36, 0.33), (0.45, 0.50, 0.66), (0.38, 0.24, 0.18)),
        "rain": ((0.03, 0.03, 0.03), (0.66, 0.64, 0.62), (0.68, 0.67, 0.66), (0.55, 0.53, 0.52)),
        "night": ((0.02, 0.02, 0.02), (0.13, 0.14, 0.15), (0.09, 0.08, 0.08), (0.04, 0.03, 0.03)),
    }[kind]
    gain = rng.uniform(0.85, 1.1)
    density = {"sunny": 1 / 900, "cloudy": 1 / 600, "dusk": 1 / 500, "rain": 1 / 170, "night": 1 / 600}[kind]
    density *= rng.uniform(0.6, 1.4)
    haze = 0.95 * np.array(horizon) * gain
    few, some = rng.uniform(0.0, 0.6), rng.uniform(0.2, 0.7)
    clouds = {"sunny": few, "cloudy": 0.9, "dusk": some, "rain": 1.0, "night": 0.3}[kind]
    light = Light(
        sun=sun,
        sunshine=np.array(sunshine) * gain,
        skylight=np.array(skylight) * gain,
        haze=haze,
        haze_density=density,
        wet=1.0 if kind == "rain" else 0.0,
        night={"dusk": 0.8, "rain": 0.15, "night": 1.0}.get(kind, 0.0),
        panorama=_panorama(rng, np.array(horizon) * gain, np.array(zenith) * gain, clouds, haze),
    )
    return light, kind


def _panorama(
    rng: np.random.Generator, horizon: np.ndarray, zenith: np.ndarray, clouds: float, haze: np.ndarray
) -> np.ndarray:
    """Return the sky in all directions with clouds and a distant skyline, as in Light.panorama."""
    rows, columns = _SKY_SHAPE
    elevation = np.linspace(SKY_LOW, SKY_HIGH, rows)[:, None]
    up = np.clip(elevation / 0.8, 0, 1)[..., None] ** 0.6
    sky = np.broadcast_to(horizon * (1 - up) + zenith * up, (rows, columns, 3)).copy()
    noise = np.zeros((rows, columns), np.float32)
    for cells, strength in ((8, 0.5), (24, 0.3), (80, 0.14), (240, 0.06)):
        small = rng.random((max(2, cells // 2), cells)).astype(np.float32)
        small = np.concatenate([small, small[:, :1]], axis=1)  # no seam between the last column and the first
        noise += strength * cv2.resize(small, (columns, rows), interpolation=cv2.INTER_CUBIC)
    cover = np.clip((noise - (0.75 - 0.42 * clouds)) * 5, 0, 1)[..., None] * np.clip(elevation * 9, 0, 1)[..., None]
    white = horizon * (1.06 - 0.5 * np.clip(noise - 0.5, 0, 1)[..., None])
    sky = sky * (1 - 0.85 * cover) + white * 0.85 * cover
    skyline = np.zeros(columns)
    for _ in range(70):
        at, wide = int(rng.integers(columns)), int(rng.integers(8, 50))
        span = np.arange(at, at + wide) % columns
        skyline[span] = np.maximum(skyline[span], rng.gamma(2.0, 0.018))
    hills = 0.012 + 0.008 * np.sin(np.arange(columns) * 2 * np.pi / columns * 7 + rng.uniform(0, 6))
    far = haze * 0.78 + np.array([0.25, 0.27, 0.27]) * 0.22 * haze.mean() / 0.7
    sky = np.where((elevation < np.maximum(skyline, hills))[..., None], far, sky)
    return np.ascontiguousarray(np.clip(sky, 0, 1), np.float32)


@hot
def _azimuth(y: float, x: float) -> float:
    """Return atan2 to within 0.001 rad by a polynomial, which is faster."""
    low, high = min(abs(x), abs(y)), max(abs(x), abs(y), 1e-9)
    a = low / high
    s = a * a
    angle = ((-0.0464964749 * s + 0.15931422) * s - 0.327622764) * s * a + a
    if abs(y) > abs(x):
        angle = 0.5 * math.pi - angle
    if x < 0:
        angle = math.pi - angle
    return -angle if y < 0 else angle


@hot
def sky_at(panorama: np.ndarray, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Return the sky's colour in the direction of a unit vector x, y, z."""
    row = (z - SKY_LOW) / (SKY_HIGH - SKY_LOW) * (panorama.shape[0] - 1)
    column = (_azimuth(y, x) / (2 * math.pi) + 0.5) * (panorama.shape[1] - 1)
    j = min(max(int(row), 0), panorama.shape[0] - 2)
    i = min(max(int(column), 0), panorama.shape[1] - 2)
    a, b = column - i, min(max(row - j, 0.0), 1.0)
    p, q, r, t = panorama[j, i], panorama[j, i + 1], panorama[j + 1, i], panorama[j + 1, i + 1]
    w00, w10, w01, w11 = (1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b
    return (
        w00 * p[0] + w10 * q[0] + w01 * r[0] + w11 * t[0],
        w00 * p[1] + w10 * q[1] + w01 * r[1] + w11 * t[1],
        w00 * p[2] + w10 * q[2] + w01 * r[2] + w11 * t[2],
    )


@hot
def mixed(a: tuple[float, float, float], b: tuple[float, float, float], share: float) -> tuple[float, float, float]:
    """Return the colour at `share` (0..1) of the way from a to b."""
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share


@hot
def _between(value: float, low: float, high: float, soft: float) -> float:
    """Return 1 inside low..high and 0 outside, with edges blurred over the width `soft`."""
    return coverage(value - 0.5 * (low + high), 0.5 * (high - low), soft)


@hot
def _facade(
    color: tuple[float, float, float],
    pane: tuple[float, float, float],
    u: float,
    v: float,
    width: float,
    height: float,
    footprint: float,
    seed: int,
    night: float,
) -> tuple[float, float, float, float]:
    """Return the colour of a house's front at u, v (m), and how much of it glows or mirrors."""
    pitch = 2.4 + 1.6 * hashed(seed, 1, 3)
    storey = 3.1 + 0.6 * hashed(seed, 2, 3)
    wide = 0.35 + 0.3 * hashed(seed, 4, 3)
    pitch = width / max(1.0, math.floor(width / pitch))
    column, level = math.floor(u / pitch), math.floor(v / storey)
    x, y = u / pitch - column, v / storey - level
    fx, fy = footprint / pitch, footprint / storey
    if level >= math.floor(height / storey):
        return color[0], color[1], color[2], 0.0
    if level == 0:  # shops and doors
        share = _between(x, 0.10, 0.90, fx) * _between(y, 0.12, 0.78, fy)
        sign = _between(y, 0.82, 0.97, fy)
        accent = hashed(seed, int(column) // 3, 9)
        color = mixed(color, (0.15 + 0.6 * accent, 0.2 + 0.3 * (1 - accent), 0.55 * (1 - accent) + 0.1), 0.8 * sign)
    else:
        share = _between(x, 0.5 - wide / 2, 0.5 + wide / 2, fx) * _between(y, 0.28, 0.80, fy)
        ledge = _between(y, 0.22, 0.27, fy) * _between(x, 0.45 - wide / 2, 0.55 + wide / 2, fx)
        color = mixed(color, (0.7, 0.7, 0.7), 0.5 * ledge)
    lit = hashed(seed + int(column), int(level), 5)
    if night > 0.3 and lit < 0.35:
        color = mixed(color, (0.35, 0.62, 0.80), share)
        return color[0], color[1], color[2], 0.0
    # curtains and blinds
    shown = mixed(pane, (0.6, 0.62, 0.64), 0.35 if lit > 0.8 else 0.0)
    bar_share = max(_between(x, 0.49, 0.51, fx), 0.0) * share
    shown = mixed(shown, color, 0.6 * bar_share)
    color = mixed(color, shown, share)
    return color[0], color[1], color[2], share


@hot
def is_hole(
    material: int, u: float, v: float, width: float, height: float, footprint: float, seed: int, texture: np.ndarray
) -> bool:
    """Return whether a surface is open at u, v; arguments as in surface_color."""
    if material == _LEAVES:
        fine = texture_at(texture, 0, 34 * u + 31 * seed, 34 * v) / (1.0 + 4.0 * footprint)
        return 0.55 * fine + 0.8 * texture_at(texture, 1, 42 * u + 17 * seed, 42 * v) < -0.22
    if material == _SPOKES:
        r = 2 * math.hypot(u / width - 0.5, v / height - 0.5)
        angle = math.atan2(v - 0.5 * height, u - 0.5 * width) * (7 / math.pi)
        return 0.16 < r < 0.84 and abs(angle - math.floor(angle) - 0.5) > 0.09 + footprint
    return False


@hot
def surface_color(
    material: int,
    a: tuple[float, float, float],
    b: tuple[float, float, float],
    u: float,
    v: float,
    width: float,
    height: float,
    footprint: float,
    seed: int,
    texture: np.ndarray,
    night: float,
) -> tuple[float, float, float, float, float]:
    """Return a surface's own colour at u, v (m), how much it mirrors, and how much it glows.

    material: one of Material
    a, b: the surface's two colours
    width, height: of the face, m
    footprint: of a pixel, m
    seed: for what differs from object to object
    texture: noise, as in Ground
    night: as in Light
    """
    mirror, glow = 0.0, 0.0
    x, y = u / width, v / height
    fx, fy = footprint / width, footprint / height
    fade = 1.0 / (1.0 + 12.0 * footprint)
    if material == _PAINT:
        mirror = 0.22
    elif material == _GLASS:
        mirror = 0.45
    elif material == _SIDE_GLASS:
        pillar = max(_between(x, 0.47, 0.52, fx), max(_between(x, -0.1, 0.04, fx), _between(x, 0.96, 1.1, fx)))
        pillar = max(pillar, _between(y, 0.90, 1.1, fy))
        a, mirror = mixed(a, b, pillar), 0.40 * (1 - pillar) + 0.2 * pillar
    elif material == _FACADE:
        cb, cg, cr, share = _facade(a, b, u, v, width, height, footprint, seed, night)
        grain = 0.10 * fade * texture_at(texture, 0, 9 * u, 14 * v) + 0.08 * texture_at(texture, 1, 3 * u + seed, 3 * v)
        a, mirror = (cb * (1 + grain), cg * (1 + grain), cr * (1 + grain)), 0.35 * share
        glow = 0.75 if night > 0.3 and share == 0.0 and cr > 1.25 * cb else 0.0
    elif material in (_FOLIAGE, _LEAVES):
        t = 0.5 + 0.5 * texture_at(texture, 1, 60 * u + 31 * seed, 60 * v)
        t += 0.55 * fade * texture_at(texture, 0, 40 * u + 7 * seed, 40 * v)
        a = mixed(b, a, min(max(t, 0.0), 1.25))
    elif material == _STRIPES:
        period = 0.4
        place = (u + 0.7 * v) / period
        a = mixed(
            a, b, coverage(place - math.floor(place) - 0.5, 0.25, footprint / period) if footprint < period else 0.5
        )
    elif material == _CAR_FRONT:
        lamps = max(_between(x, 0.03, 0.22, fx), _between(x, 0.78, 0.97, fx)) * _between(y, 0.50, 0.78, fy)
        grille = _between(x, 0.27, 0.73, fx) * _between(y, 0.38, 0.72, fy)
        intake = _between(x, 0.15, 0.85, fx) * _between(y, 0.08, 0.27, fy)
        plate = _between(x, 0.41, 0.59, fx) * _between(y, 0.29, 0.40, fy)
        a = mixed(mixed(mixed(a, (0.08, 0.08, 0.08), max(grille, intake)), (0.85, 0.85, 0.85), plate), b, lamps)
        mirror, glow = 0.15, lamps * night
    elif material == _CAR_REAR:
        lamps = max(_between(x, 0.03, 0.20, fx), _between(x, 0.80, 0.97, fx)) * _between(y, 0.42, 0.72, fy)
        plate = _between(x, 0.39, 0.61, fx) * _between(y, 0.40, 0.58, fy)
        a = mixed(mixed(mixed(a, (0.1, 0.1, 0.1), _between(y, -0.1, 0.16, fy)), (0.85, 0.85, 0.85), plate), b, lamps)
        mirror, glow = 0.15, 0.9 * lamps * night
    elif material == _CAR_SIDE:
        seam = max(_between(x, 0.365, 0.375, fx), max(_between(x, 0.545, 0.555, fx), _between(x, 0.72, 0.73, fx)))
        sill = _between(y, -0.1, 0.12, fy)
        handle = max(_between(x, 0.39, 0.42, fx), _between(x, 0.57, 0.60, fx)) * _between(y, 0.72, 0.78, fy)
        a, mirror = mixed(a, (0.08, 0.08, 0.08), max(0.7 * seam, max(sill, 0.6 * handle))), 0.2
    elif material == _BUS_SIDE:
        number = max(2.0, math.floor(width / 1.6))
        place = x * number - math.floor(x * number)
        pane = _between(place, 0.06, 0.94, fx * number) * _between(y, 0.08, 0.72, fy)
        band = _between(y, 0.80, 0.90, fy)
        a = mixed(mixed(a, b, band), (0.10, 0.09, 0.08), pane)
        mirror, glow = 0.3 * pane + 0.12, 0.5 * pane if night > 0.3 else 0.0
        if night > 0.3:
            a = mixed(a, (0.55, 0.75, 0.80), pane)
    elif material == _CARGO:
        patch = _between(x, 0.22, 0.78, fx) * _between(y, 0.38, 0.70, fy)
        letters = patch * (1.0 if hashed(int(x * 24), int(y * 9), seed) < 0.45 else 0.0)
        edge = 1 - _between(x, 0.012, 0.988, fx) * _between(y, 0.03, 0.97, fy)
        a = mixed(mixed(a, b, 0.85 * letters + 0.1 * patch), (0.4, 0.4, 0.4), 0.5 * edge)
        mirror = 0.06
    elif material == _MASONRY:
        grain = 0.12 * fade * texture_at(texture, 0, 20 * u, 20 * v) + 0.10 * texture_at(
            texture, 1, 8 * u + seed, 8 * v
        )
        a = (a[0] * (1 + grain), a[1] * (1 + grain), a[2] * (1 + grain))
    elif material == _LAMP:
        glow = 0.55 + 0.45 * night
    elif material in (_WHEEL, _SPOKES):
        r = 2 * math.hypot(x - 0.5, y - 0.5)
        rim = 1 - _between(r, 0.66, 2.0, 2 * fx)
        spoke = 0.5 + 0.5 * math.cos(5 * math.atan2(y - 0.5, x - 0.5))
        a = mixed(a, b, rim * (0.55 + 0.45 * spoke))
    elif material == _CLOTH:
        grain = 0.14 * texture_at(texture, 1, 60 * u + 13 * seed, 60 * v)
        a = (a[0] * (1 + grain), a[1] * (1 + grain), a[2] * (1 + grain))
    elif material == _CONE:
        a = mixed(a, b, _between(y, 0.42, 0.68, fy))
    elif material == _LATTICE:
        place = u / 0.28
        rib = _between(place - math.floor(place), 0.0, 0.45, footprint / 0.28) if footprint < 0.28 else 0.45
        a = mixed(a, (0.6 * a[0], 0.6 * a[1], 0.6 * a[2]), rib)
    return a[0], a[1], a[2], mirror, glow


@hot
def ground_color(
    ground: Ground, x: float, y: float, edge: float, rx: float, ry: float, far: float, near: float
) -> tuple[float, float, float]:
    """Return the ground's own colour at x, y (m).

    edge: result of ground.edge_distance at x, y, m
    rx, ry, far, near: as in ground.road_paint
    """
    texture = ground.texture
    rough = texture_at(texture, 1, 5.0 * x, 5.0 * y)
    broad = texture_at(texture, 1, 0.7 * x + 100, 0.7 * y)
    fine = texture_at(texture, 0, 45.0 * x, 45.0 * y) / (1.0 + 60.0 * near)
    s, d, c, sn = main_coordinates(ground, x, y)
    if edge < 0:
        # repaired patches
        patch = hashed(math.floor(s / 5.3), math.floor(d / 1.7), ground.seed)
        mended = 0.14 if patch < 0.05 else -0.10 if patch < 0.09 else 0.0
        grain = 1 + 0.20 * fine + 0.09 * rough + 0.10 * broad + mended
        color = (ground.tone[0] * grain, ground.tone[1] * grain, ground.tone[2] * grain)
        white, yellow, median = road_paint(ground, x, y, s, d, c, sn, rx, ry, far, near)
        worn = 1 - ground.wear * (0.5 + 0.9 * abs(rough + 0.5 * fine))
        color = mixed(color, (0.80, 0.82, 0.82), white * worn)
        color = mixed(color, (0.20, 0.62, 0.80), yellow * worn)
        if edge > -0.35:
            color = mixed(color, (0.33, 0.34, 0.35), 0.6)
        return mixed(color, (0.30, 0.42, 0.38) if ground.seed % 2 else (0.52, 0.54, 0.55), median)
    if edge < 0.18:
        return 0.56 + 0.05 * rough, 0.58 + 0.05 * rough, 0.59 + 0.05 * rough
    kind = kind_of(ground, x, y, edge, s, d)
    if abs(d) > 900.0:
        s, d = x, y
    if kind == PAVEMENT:
        joint = 0.0
        if near < 0.25:
            width = 1.5
            for place in (s / width, (d + 0.3) / width):
                joint = max(joint, coverage(place - math.floor(place) - 0.5, 0.008, max(far, near) / width))
        tone = 0.50 + 0.06 * (hashed(math.floor(s / 1.5), math.floor(d / 1.5), 3) - 0.5)
        tone *= 1 + 0.08 * rough + 0.10 * fine + 0.08 * broad
        return (tone * (1 - 0.5 * joint), tone * 1.03 * (1 - 0.5 * joint), tone * 1.06 * (1 - 0.5 * joint))
    if kind == OTHER_FLAT:
        red = hashed(math.floor(s / 28.0), 7, ground.seed)
        grain = 1 + 0.12 * rough + 0.14 * fine
        return mixed((0.36 * grain, 0.45 * grain, 0.58 * grain), (0.56 * grain, 0.58 * grain, 0.60 * grain), red)
    grain = 1 + 0.22 * fine + 0.25 * rough + 0.15 * broad
    if land(ground, s, d) == 2:
        return 0.22 * grain, 0.33 * grain, 0.42 * grain
    dry = 0.5 + 0.5 * broad
    green = mixed((0.13 * grain, 0.34 * grain, 0.24 * grain), (0.18 * grain, 0.38 * grain, 0.36 * grain), dry)
    return green
