"""Losses of heatmaps, boxes, depths and voxels, by hand."""

import math

import pytest
import torch

from bev_perception.families.bevdet.centerpoint_head import CHANNELS, TaskMaps
from bev_perception.families.bevdet.losses import (
    BOX_PARTS,
    depth_loss,
    detection_loss_names,
    detection_losses,
    gaussian_focal_loss,
    occupancy_loss,
)
from bev_perception.families.bevdet.recipe import BEVDetRecipe
from bev_perception.families.bevdet.targets import NO_DEPTH, TaskTarget


def maps(batch, classes=1, size=(2, 3), value=0.0):
    fields = {name: torch.full((batch, n, *size), value) for name, n in {**CHANNELS, "heatmap": classes}.items()}
    return TaskMaps(**fields)


def test_focal_loss_by_hand():
    logits, targets = torch.tensor([0.0, 0.0, 2.0]), torch.tensor([1.0, 0.5, 0.0])
    p = 1 / (1 + math.exp(-2))
    wanted = math.log(2) * 0.25 + math.log(2) * 0.25 * 0.5**4 - math.log(1 - p) * p**2
    assert gaussian_focal_loss(logits, targets).item() == pytest.approx(wanted)


def test_probabilities_near_0_and_1_stay_finite():
    logits = torch.tensor([200.0, -200.0], requires_grad=True)
    loss = gaussian_focal_loss(logits, torch.tensor([0.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx(-2 * math.log(1e-4) * (1 - 1e-4) ** 2, rel=1e-4)
    assert logits.grad.isfinite().all()


def test_boxes_are_averaged_over_the_objects_of_all_samples():
    recipe = BEVDetRecipe(box_weight=2.0, code_weights=(1.0,) * 8 + (0.5, 0.5))
    heatmap = torch.zeros(1, 2, 3)
    heatmap[0, 1, 2] = 1
    codes = torch.arange(1.0, 11.0)
    some = TaskTarget(heatmap, torch.tensor([5, 5, 0]), torch.stack([codes, codes, codes * 0]))
    none = TaskTarget(torch.zeros(1, 2, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 10))
    found = detection_losses([maps(2)], [[some], [none]], recipe)
    assert set(found) == set(detection_loss_names(1))
    divisor = 3 + 1e-4
    assert found["task0.loss_xy"].item() == pytest.approx(2 * 2 * (1 + 2) / divisor)
    assert found["task0.loss_vel"].item() == pytest.approx(2 * 2 * (9 + 10) * 0.5 / divisor)
    assert found["task0.loss_heatmap"].item() == pytest.approx(12 * 0.25 * math.log(2), rel=1e-5)  # one peak


def test_without_objects_only_the_heatmap_is_wrong():
    none = TaskTarget(torch.zeros(1, 2, 3), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 10))
    found = detection_losses([maps(1)], [[none]], BEVDetRecipe())
    assert found.pop("task0.loss_heatmap") > 0
    assert [loss.item() for loss in found.values()] == [0.0] * len(BOX_PARTS)


def test_depths():
    probability = torch.tensor([[0.7, 0.5], [0.3, 0.5]])[:, None]  # [D, h, w]
    labels = torch.tensor([[0, NO_DEPTH]])
    assert depth_loss(probability, labels).item() == pytest.approx(-2 * math.log(0.7))
    assert depth_loss(probability, torch.full((1, 2), NO_DEPTH)).item() == 0


def test_voxels_that_do_not_count():
    logits = torch.zeros(1, 1, 1, 3, 4)
    logits[0, 0, 0, 1, 2] = 1.0
    semantics = torch.tensor([0, 2, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    counted = semantics < 255
    wanted = (math.log(4) + math.log(3 + math.e) - 1) / 2
    assert occupancy_loss(logits, semantics, counted).item() == pytest.approx(wanted)
    assert occupancy_loss(logits, semantics, counted & False).item() == 0
