"""Assignment of known boxes to instances."""

import math

import torch

from bev_perception.families.sparse4d.recipe import Sparse4DRecipe
from bev_perception.families.sparse4d.targets import assign_stage, box_rules, encode_boxes

CLASSES = ("car", "barrier", "traffic_cone")
RULES = box_rules(Sparse4DRecipe(), CLASSES, torch.zeros(()))


def boxes_at(*places):
    boxes = torch.zeros(len(places), 9)
    boxes[:, :2], boxes[:, 3:6] = torch.tensor(places), 1.0
    return boxes


def assigned(places, labels, predicted, logits=None):
    """The targets of one sample's instances at `predicted` for boxes at `places`."""
    logits = torch.zeros(1, len(predicted), len(CLASSES)) if logits is None else logits
    found = encode_boxes(boxes_at(*predicted))[None]
    return assign_stage(logits, found, [torch.tensor(labels)], [encode_boxes(boxes_at(*places))], RULES)


def test_codes():
    box = torch.tensor([[1.0, 2.0, 3.0, math.e, 1.0, math.e**2, math.pi / 2, 4.0, 5.0]])
    torch.testing.assert_close(encode_boxes(box), torch.tensor([[1.0, 2, 3, 1, 0, 2, 1, 0, 4, 5]]), atol=1e-6, rtol=0)


def test_near_boxes_are_matched():
    found = assigned([(0.0, 0), (10.0, 0)], [0, 1], [(9.0, 0), (30.0, 0), (1.0, 0)])
    assert found.labels.tolist() == [[1, 3, 0]]
    assert found.matched.tolist() == [[True, False, True]]
    assert found.boxes[0, :, 0].tolist() == [10.0, 0.0, 0.0]


def test_the_class_decides_between_equal_places():
    logits = torch.full((1, 2, 3), -3.0)
    logits[0, 1, 2] = 3.0
    assert assigned([(0.0, 0)], [2], [(0.0, 0), (0.0, 0)], logits).labels.tolist() == [[3, 2]]


def test_cones_have_no_front():
    """Their yaw does not count, and their place counts twice."""
    found = assigned([(0.0, 0), (10.0, 0)], [0, 2], [(0.0, 0), (10.0, 0)])
    assert found.weights[0, 0].tolist() == [1.0] * 10
    assert found.weights[0, 1].tolist() == [2, 2, 2, 1, 1, 1, 0, 0, 1, 1]


def test_more_boxes_than_instances():
    found = assigned([(0.0, 0), (10.0, 0), (20.0, 0)], [0, 0, 1], [(21.0, 0)])
    assert found.labels.tolist() == [[1]]


def test_no_boxes():
    found = assign_stage(
        torch.zeros(1, 2, 3), torch.zeros(1, 2, 10), [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, 10)], RULES
    )
    assert found.labels.tolist() == [[3, 3]]
    assert not found.matched.any()


def test_predictions_that_are_not_finite_are_matched_last():
    predicted = encode_boxes(boxes_at((0.0, 0), (50.0, 0)))[None]
    predicted[0, 0, 0] = torch.nan
    found = assign_stage(
        torch.zeros(1, 2, 3), predicted, [torch.tensor([0])], [encode_boxes(boxes_at((0.0, 0)))], RULES
    )
    assert found.labels.tolist() == [[3, 0]]
