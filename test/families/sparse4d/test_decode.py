import dataclasses

import numpy as np
import pytest
import torch

from bev_perception.families.sparse4d.config import DecodeConfig
from bev_perception.families.sparse4d.decode import decode_boxes
from bev_perception.families.sparse4d.outputs import Sparse4DOutput, Stage
from bev_perception.models.protocol import NotFiniteError

NAMES = ("car", "bus")


def logit(probability):
    return torch.logit(torch.tensor(probability, dtype=torch.float64))


def outputs(scores, centerness=None, ids=None):
    """Output of one sample with these class scores [N][classes]; instance i is at x = i, 1 x 2 x 3 m large."""
    logits = logit(scores)[None]
    boxes = torch.zeros(1, len(scores), 11, dtype=torch.float64)
    boxes[0, :, 0] = torch.arange(len(scores))
    boxes[0, :, 3:6] = torch.tensor([1.0, 2.0, 3.0]).log()
    boxes[0, :, 6], boxes[0, :, 7] = 2.0, 2.0  # not normalised: 45 degrees
    boxes[0, :, 8:] = torch.tensor([4.0, 5.0, 6.0])
    quality = None
    if centerness is not None:
        quality = torch.stack([logit(centerness), torch.zeros(len(centerness), dtype=torch.float64)], dim=-1)[None]
    ids = None if ids is None else np.array([ids])
    stage = Stage(boxes, logits, quality)
    return Sparse4DOutput((stage,), (), boxes, None, None, None, None, torch.tensor(True), ids)


def decode(found, one_each, **config):
    return decode_boxes(found, DecodeConfig(**config), NAMES, one_each)


def test_an_instance_gives_a_box_for_every_class():
    boxes = decode(outputs([[0.1, 0.9], [0.8, 0.3]]), False, max_num=3).boxes
    assert boxes.scores == pytest.approx([0.9, 0.8, 0.3])
    assert boxes.labels.tolist() == [1, 0, 1] and boxes.centers[:, 0].tolist() == [0, 1, 1]
    assert boxes.sizes == pytest.approx(np.tile([1.0, 2.0, 3.0], (3, 1)))
    assert boxes.yaws == pytest.approx([np.pi / 4] * 3) and boxes.velocities.tolist() == [[4.0, 5.0]] * 3
    assert boxes.track_ids is None and boxes.class_names == NAMES


def test_an_instance_gives_one_box_whose_centerness_counts():
    found = outputs([[0.9, 0.8], [0.1, 0.7], [0.6, 0.2], [0.05, 0.05]], [0.5, 0.9, 0.95, 1 - 1e-9], [7, 8, 9, 10])
    decoded = decode(found, True, max_num=3)
    boxes = decoded.boxes
    assert boxes.scores == pytest.approx([0.63, 0.57, 0.45])
    assert boxes.labels.tolist() == [1, 0, 0] and boxes.track_ids.tolist() == [8, 9, 7]
    assert boxes.centers[:, 0].tolist() == [1, 2, 0]
    # the class scores keep their own order: they are not those of the boxes beside them
    assert decoded.class_scores == pytest.approx([0.9, 0.7, 0.6])


def test_the_threshold_is_on_class_scores():
    found = outputs([[0.9, 0.1], [0.7, 0.1], [0.6, 0.1]], [0.1, 0.9, 0.95])
    decoded = decode(found, True, score_threshold=0.65)
    assert decoded.boxes.scores == pytest.approx([0.63, 0.09])
    # of the class scores, those at the places of the boxes that are kept
    assert decoded.class_scores == pytest.approx([0.9, 0.6])


def test_samples_are_apart():
    one, other = outputs([[0.9, 0.1]]).last, outputs([[0.2, 0.8]]).last
    both = Stage(*(torch.cat(pair) for pair in ((one.boxes, other.boxes), (one.logits, other.logits))), None)
    found = dataclasses.replace(outputs([[0.9, 0.1]]), stages=(both,))
    assert decode_boxes(found, DecodeConfig(), NAMES, True, sample=1).boxes.labels.tolist() == [1]


@pytest.mark.parametrize("what", ["boxes", "logits", "finite", "size"])
def test_what_is_not_finite_is_refused(what):
    found = outputs([[0.9, 0.1], [0.8, 0.1]])
    if what == "finite":
        found = dataclasses.replace(found, finite=torch.tensor(False))
    elif what == "size":
        found.last.boxes[0, 1, 3] = 1000.0
    else:
        getattr(found.last, what)[0, 1, 0] = torch.nan
    with pytest.raises(NotFiniteError):
        decode(found, True)


@pytest.mark.parametrize("config", [{"max_num": 0}, {"score_threshold": 1.5}])
def test_mistakes_are_named(config):
    with pytest.raises(ValueError, match=next(iter(config))):
        DecodeConfig(**config)
