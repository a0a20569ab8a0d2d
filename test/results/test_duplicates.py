"""Further boxes of one object are dropped, by class."""

import numpy as np
import pytest

from bev_perception.config import NMS
from bev_perception.results.duplicates import OTHER_RADIUS, RADII, without_duplicates
from bev_perception.types import Boxes3D

NAMES = ("car", "pedestrian", "kiosk")


def boxes(*rows):
    """Rows of x, y, yaw, score, class; cars of 4 x 2 m, others of 0.6 x 0.6 m; with an id each."""
    x, y, yaw, score, label = (np.array(column, float) for column in zip(*rows, strict=True))
    car = label == 0
    return Boxes3D(
        np.stack([x, y, np.zeros_like(x)], axis=1),
        np.stack([np.where(car, 4.0, 0.6), np.where(car, 2.0, 0.6), np.ones_like(x)], axis=1),
        yaw,
        np.zeros((len(x), 2)),
        score,
        label.astype(np.int64),
        NAMES,
        np.arange(len(x)),
    )


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("none", [0, 1, 2, 3, 4, 5, 6]),
        # the car at 1.2 m is the first one again; the one that parks beside it and the people within it are not
        ("distance", [0, 2, 3, 4, 6]),
        ("rotated_iou", [0, 2, 3, 4, 6]),
    ],
)
def test_the_best_box_of_an_object_stays(rule, kept):
    found = boxes(
        (10, 0, 0.0, 0.9, 0),
        (11.2, 0, 0.1, 0.8, 0),  # the same car
        (10, 2.4, 0.0, 0.7, 0),  # parks beside it
        (10, 0, 0.0, 0.6, 1),  # of another class
        (10.7, 0, 0.0, 0.5, 1),  # walks beside that one
        (10.8, 0.1, 0.0, 0.4, 1),  # the same person
        (30, 0, 0.0, 0.3, 0),
    )
    left = without_duplicates(found, rule)
    assert left.track_ids.tolist() == kept
    assert left.scores.tolist() == found.scores[kept].tolist()


def test_what_touches_a_dropped_box_alone_stays():
    row = boxes(*((1.4 * i, 0, 0.0, 0.9 - 0.1 * i, 0) for i in range(4)))
    assert without_duplicates(row, "distance").track_ids.tolist() == [0, 2]


def test_turned_boxes_do_not_overlap_where_upright_ones_would():
    cross = boxes((0, 0, 0.0, 0.9, 0), (1.6, 1.6, np.pi / 4, 0.8, 0))
    assert len(without_duplicates(cross, "rotated_iou")) == 2
    assert len(without_duplicates(boxes((0, 0, 0.0, 0.9, 0), (0, 0.5, np.pi, 0.8, 0)), "rotated_iou")) == 1


def test_a_class_without_a_limit_takes_the_common_one():
    assert "kiosk" not in RADII
    near = boxes((0, 0, 0.0, 0.9, 2), (OTHER_RADIUS - 0.01, 0, 0.0, 0.8, 2), (0, OTHER_RADIUS + 0.01, 0.0, 0.7, 2))
    assert without_duplicates(near, "distance").track_ids.tolist() == [0, 2]


@pytest.mark.parametrize("rule", NMS)
def test_few_boxes_stay_as_they_are(rule):
    none = boxes((0, 0, 0.0, 0.9, 0)).select(np.zeros(0, int))
    assert len(without_duplicates(none, rule)) == 0
    assert len(without_duplicates(boxes((0, 0, 0.0, 0.9, 0)), rule)) == 1


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="none of none, distance, rotated_iou"):
        without_duplicates(boxes((0, 0, 0.0, 0.9, 0)), "soft")
