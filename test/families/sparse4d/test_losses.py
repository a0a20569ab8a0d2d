"""Losses worked out by hand, and what they leave out."""

import math

import pytest
import torch

from bev_perception.families.sparse4d.depth import DepthReweighting
from bev_perception.families.sparse4d.losses import (
    box_losses,
    class_loss,
    dense_depth_loss,
    depth_reweighting_loss,
    detection_loss_names,
    divisors,
    stage_losses,
)
from bev_perception.families.sparse4d.recipe import Sparse4DRecipe
from bev_perception.families.sparse4d.targets import box_rules, encode_boxes
from bev_perception.families.sparse4d.truths import InstanceTruth
from bev_perception.families.sparse4d.views import Views

CLASSES = ("car", "barrier")
ONE = torch.tensor(1.0)


def targets(yaw=0.0, x=0.0):
    return encode_boxes(torch.tensor([[x, 0.0, 0, 1, 1, 1, yaw, 0, 0]]))


def test_negative_labels_are_no_object():
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0]])
    assert class_loss(logits, torch.tensor([-1, -3]), ONE) == class_loss(logits, torch.tensor([2, 2]), ONE)
    assert class_loss(torch.tensor([[9.0, -9.0]]), torch.tensor([0]), ONE) < 1e-6


def test_box_and_quality():
    """A box 3 m away: its quality is that of exp(-3), and its front that of its target."""
    losses = box_losses(
        targets(x=3.0), targets(), torch.full((1, 10), 2.0), torch.zeros(1, 2), torch.tensor([0]), (), ONE
    )
    assert losses["box"].item() == pytest.approx(0.25 * 2 * 3)
    assert losses["cns"].item() == pytest.approx(math.log(2))
    assert losses["yns"].item() == pytest.approx(math.log(2) * 0.25)


def test_barriers_may_face_either_way():
    turned, straight, ones = targets(yaw=math.pi), targets(), torch.ones(1, 10)
    as_car, as_barrier = (
        box_losses(turned, straight, ones, torch.zeros(1, 2), torch.tensor([label]), (1,), ONE) for label in (0, 1)
    )
    assert as_car["box"].item() == pytest.approx(0.25 * 2)
    assert as_barrier["box"].item() == pytest.approx(0.0, abs=1e-6)


def test_boxes_of_low_scores_do_not_count():
    rules = box_rules(Sparse4DRecipe(), CLASSES, torch.zeros(()))
    known = [torch.tensor([0])], [targets()]
    for logit, counts in ((-5.0, False), (-2.0, True)):
        logits = torch.full((1, 1, 2), logit)
        losses = stage_losses(logits, targets(x=1.0)[None], None, *known, rules, ONE)
        assert (losses["box"] > 0) == counts
        assert losses["cls"] > 0
        assert losses.keys() == {"cls", "box"}


def test_dense_depth():
    """Levels count by their known cells; predictions beyond 60 m count as 60 m, NaN does not count."""
    predicted = [torch.tensor([10.0, 99.0, torch.nan, 5.0]), torch.tensor([3.0])]
    known = [torch.tensor([12.0, 59.0, 7.0, -1.0]), torch.tensor([-1.0])]
    assert dense_depth_loss(predicted, known).item() == pytest.approx(0.2 * (2 + 1) / (2 * 2))


def test_divisors_are_one_at_least():
    assert [value.item() for value in divisors([0, 3], torch.device("cpu"))] == pytest.approx([1.0, 3.0])


def test_names():
    assert detection_loss_names(1, quality=True, denoising=True) == (
        *("loss_cls_0", "loss_box_0", "loss_cns_0", "loss_yns_0"),
        *("loss_cls_dn_0", "loss_box_dn_0"),
    )
    assert detection_loss_names(2, quality=False, denoising=False)[2:] == ("loss_cls_1", "loss_box_1")


def test_depth_reweighting():
    """Without any knowledge all 12 distances are as likely, and a sample without boxes adds nothing."""
    module = DepthReweighting(8)
    torch.nn.init.zeros_(module.depth_fc[2].weight)
    torch.nn.init.zeros_(module.depth_fc[2].bias)
    views = Views([torch.zeros(2, 1, 2, 2, 8)], torch.eye(4).repeat(2, 1, 1, 1), (8, 8), torch.ones(2, 1), None, None)
    boxes = torch.tensor([[6.0, 0, 0, 1, 1, 1, 0, 0, 0]])  # at a bin's distance
    label = torch.zeros(1, dtype=torch.int64)
    truths = [InstanceTruth(boxes, label, label), InstanceTruth(boxes[:0], label[:0], label[:0])]
    assert depth_reweighting_loss(module, views, truths, instances=5).item() == pytest.approx(math.log(12), rel=1e-4)
