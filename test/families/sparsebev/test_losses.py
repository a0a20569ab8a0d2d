"""The losses against their plain formulas."""

import math

import pytest
import torch

from bev_perception.families.sparsebev.losses import box_loss, detection_losses, loss_names
from bev_perception.families.sparsebev.model import SparseBEVOutput
from bev_perception.families.sparsebev.targets import encode_boxes
from bev_perception.supervision.criteria import focal_loss
from bev_perception.supervision.samples import BoxTruth


def test_focal_loss_is_its_formula():
    logits = torch.randn((20, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    labels = torch.arange(20) % 4  # 3: no class
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for column, x in enumerate(row):
            p = 1 / (1 + math.exp(-x))
            expected += -0.25 * (1 - p) ** 2 * math.log(p) if column == label else -0.75 * p**2 * math.log(1 - p)
    assert focal_loss(logits, labels).item() == pytest.approx(expected, rel=1e-12)


def test_focal_loss_and_its_gradient_stay_finite():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([1]))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_boxes_with_a_target_that_is_not_finite_do_not_count():
    boxes = torch.zeros((2, 10), requires_grad=True)
    targets = torch.ones(2, 10)
    targets[1, 3] = -torch.inf
    loss = box_loss(boxes, targets, torch.full((10,), 2.0), moving_weight=1.0)
    loss.backward()
    assert loss.item() == 20.0 and (boxes.grad[1] == 0).all()


def test_the_velocity_of_what_moves_may_count_more():
    boxes = torch.zeros(2, 10)
    targets = torch.zeros(2, 10)
    targets[0, 0], targets[0, 8] = 3.0, 2.0  # moves
    targets[1, 9] = 0.25  # stands, but for noise
    assert box_loss(boxes, targets, torch.ones(10), moving_weight=1.0).item() == 3 + 2 + 0.25
    assert box_loss(boxes, targets, torch.ones(10), moving_weight=4.0).item() == 3 + 4 * 2 + 0.25


def test_a_perfect_prediction_costs_next_to_nothing_and_the_divisor_is_the_number_of_boxes():
    truths = [
        BoxTruth(torch.rand(3, 9) + 0.5, torch.tensor([1, 2, 3])),
        BoxTruth(torch.zeros(0, 9), torch.zeros(0).long()),
    ]
    boxes = torch.zeros(2, 2, 5, 10)
    boxes[:, 0, 1:4] = encode_boxes(truths[0].boxes)
    logits = torch.full((2, 2, 5, 10), -20.0)
    logits[:, 0, torch.arange(1, 4), truths[0].labels] = 20.0
    losses = detection_losses(
        SparseBEVOutput(logits, boxes, torch.tensor(True)), truths, None, torch.ones(10), moving_weight=1.0
    )
    assert set(losses) == set(loss_names(2, denoising=False))
    assert max(loss.item() for loss in losses.values()) < 1e-6
    off = detection_losses(
        SparseBEVOutput(logits, boxes + 1, torch.tensor(True)), truths, None, torch.ones(10), moving_weight=1.0
    )
    assert off["loss_bbox"].item() == pytest.approx(0.25 * 10, rel=1e-5)


def test_names():
    assert loss_names(2, denoising=True) == (
        *("loss_cls", "loss_bbox", "d0.loss_cls", "d0.loss_bbox"),
        *("loss_cls_dn", "loss_bbox_dn", "d0.loss_cls_dn", "d0.loss_bbox_dn"),
    )
