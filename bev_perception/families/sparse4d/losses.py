"""Losses of Sparse4D (Lin et al., 2022, 2023): classes, boxes and their quality after every stage, and dense depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bev_perception.families.sparse4d.aggregation import project
from bev_perception.families.sparse4d.anchors import ANCHOR_SIZE, FIXED_POINTS, points_in_boxes
from bev_perception.families.sparse4d.denoising import Denoising
from bev_perception.families.sparse4d.depth import DepthReweighting
from bev_perception.families.sparse4d.outputs import Sparse4DOutput
from bev_perception.families.sparse4d.targets import TARGET_SIZE, BoxRules, assign_stage, encode_boxes
from bev_perception.families.sparse4d.truths import InstanceTruth
from bev_perception.families.sparse4d.views import Views
from bev_perception.ops.deformable_aggregation import aggregate_features
from bev_perception.supervision.criteria import (
    BOX_WEIGHT,
    CLASS_WEIGHT,
    COUNT_EPS,
    average_count,
    focal_loss,
)

#: exponents of the Gaussian focal loss of the yaw's quality, and what is added to probabilities before the logarithm
ALPHA, GAMMA, QUALITY_EPS = 2, 4, 1e-12
#: weight of the loss of dense depth
DEPTH_WEIGHT = 0.2
#: m; predictions of dense depth are limited to it
MAX_DEPTH = 60.0
#: channels of the quality
CENTERNESS, YAWNESS = 0, 1


def detection_losses(
    output: Sparse4DOutput,
    truths: Sequence[InstanceTruth],
    denoising: tuple[Denoising, Denoising] | None,
    rules: BoxRules,
) -> dict[str, Tensor]:
    """Return the losses of all stages by name, such as "loss_cls_0"; training minimises their sum.

    output: predictions of the instances and, if there are any, of the denoising instances.
    truths: known boxes, one entry per sample.
    denoising: targets of the denoising instances in the first stage, and in the others; None without any.

    All losses are divided by numbers of boxes averaged over the processes, so that the average of the gradients equals
    the gradient of one process with all samples.
    """
    labels, targets = [truth.labels for truth in truths], [encode_boxes(truth.boxes) for truth in truths]
    valid = [0, 0] if denoising is None else [int(part.valid.sum()) for part in denoising]
    counts = divisors([matched_count(truths, output.features.shape[1]), *valid], output.features.device)
    losses: dict[str, Tensor] = {}
    for k, stage in enumerate(output.stages):
        assert stage.logits is not None  # in training every stage classifies
        found = stage_losses(stage.logits, stage.boxes, stage.quality, labels, targets, rules, counts[0])
        if denoising is not None:
            noisy, later = output.denoising[k], min(k, 1)
            assert noisy.logits is not None
            found |= denoising_losses(noisy.logits, noisy.boxes, denoising[later], rules, counts[1 + later])
        losses |= {f"loss_{name}_{k}": value for name, value in found.items()}
    return losses


def detection_loss_names(stages: int, quality: bool, denoising: bool) -> tuple[str, ...]:
    """Return the names of the losses of detection_losses."""
    names = ["cls", "box"] + ["cns", "yns"] * quality + ["cls_dn", "box_dn"] * denoising
    return tuple(f"loss_{name}_{k}" for k in range(stages) for name in names)


def matched_count(truths: Sequence[InstanceTruth], instances: int) -> int:
    """Return how many instances of a stage are matched with a known box, of all samples together."""
    return sum(min(len(truth.labels), instances) for truth in truths)


def divisors(counts: Sequence[int], device: torch.device) -> list[Tensor]:
    """Return what losses of so many boxes are divided by: each count averaged over the processes, at least 1."""
    return list((average_count(counts, device).clamp(min=1) + COUNT_EPS).unbind())


def stage_losses(
    logits: Tensor,
    boxes: Tensor,
    quality: Tensor | None,
    labels: Sequence[Tensor],
    targets: Sequence[Tensor],
    rules: BoxRules,
    count: Tensor,
) -> dict[str, Tensor]:
    """Return the losses of one stage of the decoder by name: cls, box, and with a quality cns and yns.

    logits: [B, N, classes].
    boxes: [B, N, 10 or more], predicted; further numbers than 10 do not count.
    quality: [B, N, 2] logits of centerness and yawness; None for a model without.
    labels: per sample [n] int64, classes of the known boxes.
    targets: per sample [n, 10], the known boxes, see encode_boxes.
    count: see divisors; of the matched boxes.
    """
    boxes = boxes[..., :TARGET_SIZE]
    found = assign_stage(logits, boxes, labels, targets, rules)
    losses = {"cls": class_loss(logits.flatten(0, 1), found.labels.flatten(), count)}
    rows = found.matched & (logits.amax(dim=-1).sigmoid() > rules.min_score)
    losses |= box_losses(
        boxes[rows],
        found.boxes[rows],
        found.weights[rows] * rules.loss,
        None if quality is None else quality[rows],
        found.labels[rows],
        rules.symmetric,
        count,
    )
    return losses


def box_losses(
    boxes: Tensor,
    targets: Tensor,
    weights: Tensor,
    quality: Tensor | None,
    labels: Tensor,
    symmetric: Sequence[int],
    count: Tensor,
) -> dict[str, Tensor]:
    """Return the losses of n matched boxes by name: box, and with a quality cns and yns.

    boxes: [n, 10], predicted.
    targets: [n, 10].
    weights: [n, 10], factors on the errors.
    quality: [n, 2]; None for a model without.
    labels: [n] int64.
    symmetric: labels of classes whose front and back look alike; their targets face the way that the predictions do.
    count: see divisors.
    """
    targets = turn_symmetric(boxes, targets, labels, symmetric)
    losses = {"box": l1_loss(boxes, targets, weights, count)}
    if quality is not None:
        losses["cns"], losses["yns"] = quality_losses(boxes, targets, quality, count)
    return losses


def class_loss(logits: Tensor, labels: Tensor, count: Tensor) -> Tensor:
    """Return the focal loss of n rows.

    logits: [n, classes].
    labels: [n] int64; negative numbers and the number of classes stand for no object.
    count: see divisors.
    """
    none = logits.shape[-1]
    return CLASS_WEIGHT * focal_loss(logits, torch.where(labels < 0, none, labels)) / count


def l1_loss(boxes: Tensor, targets: Tensor, weights: Tensor, count: Tensor) -> Tensor:
    """Return the L1 loss of n boxes.

    boxes: [n, 10], predicted.
    targets: [n, 10].
    weights: [n, 10] or [10].
    count: see divisors.
    """
    return BOX_WEIGHT * ((boxes - targets).abs() * weights).sum() / count


def quality_losses(boxes: Tensor, targets: Tensor, quality: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses of centerness and yawness of n rows (Lin et al., Sparse4D v3, section 3.2).

    boxes: [n, 10], predicted.
    targets: [n, 10].
    quality: [n, 2] logits of centerness and yawness.
    count: see divisors.
    """
    # the target is not detached: as in the published training, the loss of centerness also moves the centre
    centered = torch.exp(-(targets[:, :3] - boxes[:, :3]).norm(dim=1))
    cns = F.binary_cross_entropy_with_logits(quality[:, CENTERNESS], centered, reduction="sum")
    aligned = F.cosine_similarity(targets[:, 6:8], boxes[:, 6:8], dim=1) > 0
    probability = quality[:, YAWNESS].sigmoid()
    found = -(probability + QUALITY_EPS).log() * (1 - probability) ** ALPHA
    missed = -(1 - probability + QUALITY_EPS).log() * probability**ALPHA
    yns = torch.where(aligned, found, missed).sum()
    return cns / count, yns / count


def turn_symmetric(boxes: Tensor, targets: Tensor, labels: Tensor, symmetric: Sequence[int]) -> Tensor:
    """Return targets [n, 10] in which boxes of symmetric classes face the way that the predictions do.

    boxes: [n, 10], predicted.
    labels: [n] int64.
    symmetric: labels of classes whose front and back look alike.
    """
    opposite = F.cosine_similarity(targets[:, 6:8], boxes[:, 6:8], dim=1) < 0
    turned = opposite & torch.isin(labels, torch.tensor(list(symmetric), dtype=labels.dtype, device=labels.device))
    signs = torch.ones_like(targets)
    signs[:, 6:8] = torch.where(turned, -1.0, 1.0)[:, None]
    return targets * signs


def denoising_losses(
    logits: Tensor, boxes: Tensor, denoising: Denoising, rules: BoxRules, count: Tensor
) -> dict[str, Tensor]:
    """Return the losses of one stage's denoising instances by name: cls_dn, box_dn.

    logits: [B, D, classes].
    boxes: [B, D, 10 or more], predicted; further numbers than 10 do not count.
    denoising: the targets.
    count: see divisors; of the valid instances.
    """
    objects = denoising.valid & (denoising.labels >= 0)
    return {
        "cls_dn": class_loss(logits[denoising.valid], denoising.labels[denoising.valid], count),
        "box_dn": l1_loss(boxes[..., :TARGET_SIZE][objects], denoising.boxes[objects], rules.loss, count),
    }


def dense_depth_loss(depths: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the L1 loss of dense depth.

    depths: per pyramid level [...], predicted, m.
    targets: per pyramid level [...], m, not positive where unknown.
    """
    total = depths[0].new_zeros(())
    for depth, target in zip(depths, targets, strict=True):
        known = (target > 0) & ~depth.isnan()
        errors = (depth[known].clamp(0, MAX_DEPTH) - target[known]).abs()
        total = total + errors.sum() / max(1, len(errors) * len(depths))
    return DEPTH_WEIGHT * total


def depth_reweighting_loss(
    module: DepthReweighting, views: Views, truths: Sequence[InstanceTruth], instances: int
) -> Tensor:
    """Return the loss of version 1 that lets features at known boxes speak of their distance.

    module: the layers that weight features by depth.
    views: the current frame.
    truths: known boxes, one entry per sample.
    instances: N, of which as many count as are matched.
    """
    (count,) = divisors([matched_count(truths, instances)], views.reference2image.device)
    fixed = views.reference2image.new_tensor(FIXED_POINTS)
    total = views.reference2image.new_zeros(())
    for b, truth in enumerate(truths):
        anchors = F.pad(encode_boxes(truth.boxes), (0, ANCHOR_SIZE - TARGET_SIZE))[None]  # [1, n, 11]
        sample = replace(
            views, levels=[level[b : b + 1] for level in views.levels], reference2image=views.reference2image[b : b + 1]
        )
        uv = project(points_in_boxes(anchors, fixed), sample)  # [1, n, 7, V, 2]
        equal = uv.new_full((*uv.shape[:4], len(views.levels), 1), 1 / (uv.shape[3] * len(views.levels)))
        features = aggregate_features(sample.levels, uv, equal, gate=False, per_point=True)  # [1, n, 7, C]
        total = total - module.confidence(features, anchors[:, :, None, :3]).log().sum()
    return total / count / len(FIXED_POINTS)
