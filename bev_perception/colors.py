"""One colour a class, the same in every picture, point cloud and viewer."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

#: RGB of the classes of Occ3D (config.OCC3D_CLASSES), our own choice: what may hit you is bright, ground is muted, and
#: no two are closer than 25 in CIELAB
OCC3D_COLORS: dict[str, tuple[int, int, int]] = {
    "others": (255, 255, 255),
    "barrier": (255, 180, 170),
    "bicycle": (255, 105, 200),
    "bus": (255, 225, 30),
    "car": (40, 140, 255),
    "construction_vehicle": (165, 85, 30),
    "motorcycle": (185, 25, 95),
    "pedestrian": (255, 30, 30),
    "traffic_cone": (255, 140, 0),
    "trailer": (110, 60, 255),
    "truck": (0, 225, 225),
    "driveable_surface": (115, 115, 125),
    "other_flat": (110, 90, 55),
    "sidewalk": (165, 95, 175),
    "terrain": (150, 195, 75),
    "manmade": (205, 195, 150),
    "vegetation": (20, 130, 55),
    "free": (45, 45, 45),
}
#: hues of classes without a colour of their own follow each other at this distance, which never comes round again
GOLDEN_RATIO = (5**0.5 - 1) / 2


def class_colors(class_names: Sequence[str]) -> np.ndarray:
    """Return the classes' colours [n, 3] uint8 RGB; a name that is not in OCC3D_COLORS gets a hue by its position."""
    colors = [OCC3D_COLORS.get(name) or _hue(position) for position, name in enumerate(class_names)]
    return np.array(colors, np.uint8).reshape(-1, 3)


def _hue(position: int) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(position * GOLDEN_RATIO % 1.0, 0.75, 0.95)
    return round(255 * r), round(255 * g), round(255 * b)
