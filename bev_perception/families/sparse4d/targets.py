"""Training targets of the instances: Hungarian assignment of known boxes (Lin et al., Sparse4D v1 and v2, 2022-23)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bev_perception.families.sparse4d.recipe import Sparse4DRecipe
from bev_perception.supervision.criteria import BOX_WEIGHT, CLASS_WEIGHT, focal_cost, match

#: numbers of a target: centre x, y, z (m), logarithms of its sizes, sine and cosine of its yaw, vx, vy (m/s)
TARGET_SIZE = 10
#: the class of Sparse4DRecipe.cone_weights
CONE = "traffic_cone"
#: replaces costs that are not finite
FORBIDDEN_COST = 1e8


@dataclass(frozen=True)
class BoxRules:
    """How boxes are matched with instances, and which errors count.

    matching: [10], weight of each number of a target in the cost of a match.
    loss: [10], weight of each number of a target in the box loss.
    by_class: [classes, 10], factor on both for the boxes of a class.
    symmetric: labels of classes whose front and back look alike.
    min_score: boxes of instances whose highest score is not above it do not count in the box loss.
    """

    matching: Tensor
    loss: Tensor
    by_class: Tensor
    symmetric: tuple[int, ...]
    min_score: float


def box_rules(recipe: Sparse4DRecipe, class_names: Sequence[str], like: Tensor) -> BoxRules:
    """Return the rules of a recipe, with the dtype and on the device of `like`."""
    by_class = like.new_ones((len(class_names), TARGET_SIZE))
    if CONE in class_names:
        by_class[class_names.index(CONE)] = like.new_tensor(recipe.cone_weights)
    return BoxRules(
        matching=like.new_tensor(recipe.matching_weights),
        loss=like.new_tensor(recipe.loss_weights),
        by_class=by_class,
        symmetric=tuple(label for label, name in enumerate(class_names) if name in recipe.symmetric_classes),
        min_score=recipe.min_score,
    )


@dataclass(frozen=True)
class StageTargets:
    """What the instances of one stage of the decoder should predict.

    labels: [B, N] int64; the number of classes stands for no object.
    boxes: [B, N, 10], zeros where no box is matched.
    weights: [B, N, 10], factors on the errors before BoxRules.loss.
    """

    labels: Tensor
    boxes: Tensor
    weights: Tensor

    @property
    def matched(self) -> Tensor:
        """[B, N] bool, instances that have a box to predict."""
        return (self.boxes != 0).any(dim=-1)  # sine and cosine of a yaw are never both 0


def encode_boxes(boxes: Tensor) -> Tensor:
    """Convert boxes [..., 9] (see InstanceTruth) to targets [..., 10] (see TARGET_SIZE)."""
    center, size, yaw, velocity = boxes.split([3, 3, 1, 2], dim=-1)
    return torch.cat([center, size.log(), yaw.sin(), yaw.cos(), velocity], dim=-1)


@torch.no_grad()
def assign(logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor, rules: BoxRules) -> tuple[Tensor, Tensor]:
    """Match instances and known boxes one to one at the lowest total cost; return the indices of both, [min(N, n)].

    logits: [N, classes].
    boxes: [N, 10], predicted.
    labels: [n] int64.
    targets: [n, 10], see encode_boxes.
    """
    errors = (boxes[:, None] - targets).abs() * rules.by_class[labels] * rules.matching  # [N, n, 10]
    cost = CLASS_WEIGHT * focal_cost(logits, labels) + BOX_WEIGHT * errors.sum(dim=-1)
    return match(cost, worst=FORBIDDEN_COST, best=FORBIDDEN_COST)


def assign_stage(
    logits: Tensor, boxes: Tensor, labels: Sequence[Tensor], targets: Sequence[Tensor], rules: BoxRules
) -> StageTargets:
    """Return the targets of a stage.

    logits: [B, N, classes].
    boxes: [B, N, 10], predicted.
    labels: per sample [n] int64.
    targets: per sample [n, 10], see encode_boxes.
    """
    wanted = torch.full(logits.shape[:2], logits.shape[2], device=logits.device)
    wanted_boxes, wanted_weights = torch.zeros_like(boxes), torch.zeros_like(boxes)
    for b, (known, target) in enumerate(zip(labels, targets, strict=True)):
        rows, columns = assign(logits[b], boxes[b], known, target, rules)
        wanted[b, rows] = known[columns]
        wanted_boxes[b, rows] = target[columns]
        wanted_weights[b, rows] = rules.by_class[known[columns]]
    return StageTargets(wanted, wanted_boxes, wanted_weights)
