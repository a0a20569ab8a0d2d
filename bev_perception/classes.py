"""Class names, their nuScenes attributes, and one colour per class for every picture, point cloud and viewer."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

#: RGB colours of the Occ3D classes (OCC3D_CLASSES), our own choice: obstacles are bright, ground is muted, and
#: no two colours are closer than 25 in CIELAB
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
#: distance between the hues of classes without a colour of their own; irrational, so that no hue repeats
GOLDEN_RATIO = (5**0.5 - 1) / 2


def class_colors(class_names: Sequence[str]) -> np.ndarray:
    """Return the classes' colours [n, 3] uint8 RGB; a name not in OCC3D_COLORS gets a hue from its position."""
    colors = [OCC3D_COLORS.get(name) or _hue(position) for position, name in enumerate(class_names)]
    return np.array(colors, np.uint8).reshape(-1, 3)


def track_color(track_id: int) -> tuple[int, int, int]:
    """Return the colour of a track, RGB 0..255; ids that follow each other get colours that are far apart."""
    return _hue(track_id)


def _hue(position: int) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(position * GOLDEN_RATIO % 1.0, 0.75, 0.95)
    return round(255 * r), round(255 * g), round(255 * b)


NUSCENES_CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)


#: classes of Occ3D-nuScenes (Tian et al., NeurIPS 2023); the last is free space
OCC3D_CLASSES = (
    "others",
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
    "free",
)


#: m/s; a faster object counts as moving
MOVING_SPEED = 0.2


_VEHICLES = frozenset({"car", "truck", "construction_vehicle", "bus", "trailer"})


_CYCLES = frozenset({"motorcycle", "bicycle"})


def attribute_of(class_name: str, speed: float) -> str:
    """Return the nuScenes attribute of an object; "" if its class has none.

    class_name: one of NUSCENES_CLASSES
    speed: over ground, m/s
    """
    moving = speed > MOVING_SPEED
    if class_name == "bus":
        return "vehicle.moving" if moving else "vehicle.stopped"
    if class_name in _VEHICLES:
        return "vehicle.moving" if moving else "vehicle.parked"
    if class_name in _CYCLES:
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if class_name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    return ""


#: classes whose objects are separate instances; all voxels of any other class form a single segment
THINGS = frozenset({"car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle", "pedestrian"})
