"""The classes' colours."""

import cv2
import numpy as np
import pytest

from bev_perception.classes import NUSCENES_CLASSES, OCC3D_CLASSES, OCC3D_COLORS, attribute_of, class_colors


def closest(colors: np.ndarray) -> float:
    """Return the smallest distance of two of the colours [n, 3] in CIELAB; about 2 can just be told apart."""
    lab = cv2.cvtColor(colors[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    return distances[~np.eye(len(lab), dtype=bool)].min()


def test_every_class_of_occ3d_has_a_colour_far_from_all_others():
    assert set(OCC3D_COLORS) == set(OCC3D_CLASSES)
    assert closest(class_colors(OCC3D_CLASSES)) > 25


def test_a_class_keeps_its_colour_wherever_it_stands():
    assert class_colors(("truck", "car")).tolist() == [list(OCC3D_COLORS["truck"]), list(OCC3D_COLORS["car"])]
    names = [name for name in NUSCENES_CLASSES if name in OCC3D_COLORS]
    assert [tuple(color) for color in class_colors(names)] == [OCC3D_COLORS[name] for name in names]


def test_unknown_classes_are_told_apart_too():
    colors = class_colors([f"crop {k}" for k in range(8)])
    assert colors.shape == (8, 3) and colors.dtype == np.uint8
    assert closest(colors) > 15


def test_no_classes_no_colours():
    assert class_colors(()).shape == (0, 3)


@pytest.mark.parametrize(
    "names, moving, still",
    [
        (("car", "truck", "construction_vehicle", "trailer"), "vehicle.moving", "vehicle.parked"),
        (("bus",), "vehicle.moving", "vehicle.stopped"),
        (("bicycle", "motorcycle"), "cycle.with_rider", "cycle.without_rider"),
        (("pedestrian",), "pedestrian.moving", "pedestrian.standing"),
        (("barrier", "traffic_cone", "anything else"), "", ""),
    ],
)
def test_attributes(names, moving, still):
    for name in names:
        assert attribute_of(name, 0.21) == moving
        assert attribute_of(name, 0.2) == still


def test_every_class_of_nuscenes_is_known():
    without = {name for name in NUSCENES_CLASSES if not attribute_of(name, 1.0)}
    assert without == {"barrier", "traffic_cone"}
