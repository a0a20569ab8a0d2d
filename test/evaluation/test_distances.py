"""Mean average precision by distance, of boxes that are made up."""

import math

import pytest

from bev_perception.evaluation.distances import ap_by_distance, bins, name_of

DetectionBox = pytest.importorskip("nuscenes.eval.detection.data_classes").DetectionBox


def made_up(*places, names=None):
    """Return the devkit's boxes of one sample, the car at the origin."""
    from nuscenes.eval.common.data_classes import EvalBoxes

    boxes = EvalBoxes()
    found = [
        DetectionBox(
            sample_token="s",
            translation=(x, 0.0, 0.0),
            size=(2.0, 4.0, 1.5),
            rotation=(1.0, 0.0, 0.0, 0.0),
            velocity=(0.0, 0.0),
            ego_translation=(x, 0.0, 0.0),
            detection_name=(names or ["car"] * len(places))[i],
            detection_score=0.9 - 0.1 * i,
        )
        for i, x in enumerate(places)
    ]
    boxes.add_boxes("s", found)
    return boxes


@pytest.fixture(scope="module")
def config():
    from nuscenes.eval.common.config import config_factory

    return config_factory("detection_cvpr_2019")


def test_the_bins_reach_from_the_car_to_infinity():
    assert [name_of(ends) for ends in bins()] == ["0-20 m", "20-40 m", "40+ m"]


def test_what_is_near_is_found_and_what_is_far_is_not(config):
    truth = made_up(5.0, 15.0, 30.0, names=["car", "truck", "car"])
    scores = ap_by_distance(truth, made_up(5.0, 15.0, 25.0, names=["car", "truck", "car"]), config)
    assert scores["0-20 m"] == pytest.approx(1.0) and scores["20-40 m"] == 0.0 and math.isnan(scores["40+ m"])


def test_a_box_counts_where_it_is_itself(config):
    """Beyond the edge, it is a miss on one side and a false positive on the other."""
    scores = ap_by_distance(made_up(19.9, 30.0), made_up(20.1, 30.0), config)
    assert scores["0-20 m"] == 0.0 and 0.0 < scores["20-40 m"] < 1.0
