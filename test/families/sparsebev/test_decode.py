import math

import numpy as np
import pytest
import torch

from bev_perception.families.sparsebev.config import DecodeConfig
from bev_perception.families.sparsebev.decode import decode_boxes
from bev_perception.models.protocol import NotFiniteError
from bev_perception.results.boxes import to_ego


def logit(p):
    return math.log(p / (1 - p))


def raw(scores, boxes):
    """Raw outputs: scores [Q][classes], boxes [Q] of (x, y, z, length, width, height, yaw, vx, vy)."""
    logits = torch.tensor([[logit(p) for p in row] for row in scores])
    codes = [
        [x, y, math.log(length), math.log(width), z, math.log(height), math.sin(yaw), math.cos(yaw), vx, vy]
        for x, y, z, length, width, height, yaw, vx, vy in boxes
    ]
    return logits, torch.tensor(codes)


BOX = (1.0, 2.0, 3.0, 4.0, 1.9, 1.6, 0.7, 5.0, -6.0)
CONFIG = DecodeConfig(max_num=4, score_threshold=0.3)


def decode(scores, boxes, config=CONFIG, legacy=False, finite=True):
    names = tuple("abcdefghij"[: len(scores[0])])
    return decode_boxes(*raw(scores, boxes), torch.tensor(finite), config, names, legacy)


def test_a_box():
    found = decode([[0.9, 0.1]], [BOX])
    assert len(found) == 1
    assert found.centers[0] == pytest.approx([1, 2, 3])  # the middle: z is not moved to the bottom
    assert found.sizes[0] == pytest.approx([4, 1.9, 1.6])
    assert found.yaws[0] == pytest.approx(0.7)
    assert found.velocities[0] == pytest.approx([5, -6])
    assert found.scores[0] == pytest.approx(0.9)
    assert (found.labels[0], found.labels.dtype) == (0, np.int64)
    assert found.class_names == ("a", "b")


def test_legacy_boxes_swap_the_sides_and_turn():
    found = decode([[0.9]], [BOX], legacy=True)
    assert found.sizes[0] == pytest.approx([1.9, 4, 1.6])
    assert found.yaws[0] == pytest.approx(-0.7 - math.pi / 2)
    assert found.centers[0] == pytest.approx([1, 2, 3])


def test_one_query_may_give_several_classes_in_descending_score():
    other = (9.0, *BOX[1:])
    found = decode([[0.5, 0.8], [0.7, 0.2]], [BOX, other])
    assert found.scores == pytest.approx([0.8, 0.7, 0.5])
    assert found.labels.tolist() == [1, 0, 0]
    assert found.centers[:, 0].tolist() == [1, 9, 1]


def test_the_best_are_taken_before_the_range_is_looked_at():
    far = (70.0, *BOX[1:])
    scores, boxes = [[0.9], [0.8], [0.7], [0.6], [0.5]], [far, BOX, BOX, BOX, BOX]
    assert decode(scores, boxes).scores == pytest.approx([0.8, 0.7, 0.6])


def test_limits():
    """The threshold itself is left out, the range's border is kept."""
    config = DecodeConfig(max_num=9, score_threshold=0.5, post_center_range=(-61, -61, -10, 61, 61, 10))
    edge = (61.0, -61.0, 10.0, *BOX[3:])
    assert decode([[0.5]], [BOX], config).scores.tolist() == []
    assert len(decode([[0.51]], [edge], config)) == 1
    assert len(decode([[0.51]], [(61.1, *edge[1:])], config)) == 0
    assert len(decode([[0.51]], [(*edge[:2], 10.1, *edge[3:])], config)) == 0


def test_no_boxes():
    found = decode([[0.01]], [BOX])
    assert len(found) == 0
    assert (found.centers.shape, found.sizes.shape, found.velocities.shape) == ((0, 3), (0, 3), (0, 2))
    assert len(to_ego(found, np.eye(4))) == 0


def test_what_is_not_finite_is_no_box():
    """Zeros stand in the place of NaN by then, which would be boxes of score 0.5; a flag says what they are."""
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        decode([[0.5]], [BOX], finite=False)
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        decode([[0.9]], [(math.nan, *BOX[1:])])
    logits, codes = raw([[0.9], [0.1]], [BOX, BOX])
    codes[1, 2] = 800.0  # e^800 m: no size that a number can hold
    flag = torch.tensor(True)
    assert len(decode_boxes(logits, codes, flag, CONFIG, ("a",), False)) == 1  # it is below the threshold
    codes[0, 2] = 800.0
    with pytest.raises(NotFiniteError, match="infinitely large"):
        decode_boxes(logits, codes, flag, CONFIG, ("a",), False)
