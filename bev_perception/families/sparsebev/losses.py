"""Losses of a query detector: focal loss of the classes and L1 loss of the boxes, after every pass of the decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bev_perception.families.sparsebev.model import SparseBEVOutput
from bev_perception.families.sparsebev.targets import Denoising, assign, encode_boxes
from bev_perception.supervision.criteria import (
    BOX_WEIGHT,
    CLASS_WEIGHT,
    COUNT_EPS,
    average_count,
    focal_loss,
)
from bev_perception.supervision.samples import BoxTruth

#: m/s; a faster box counts as moving
MOVING = 0.5


def box_loss(boxes: Tensor, targets: Tensor, code_weights: Tensor, moving_weight: float) -> Tensor:
    """Return the sum of the weighted absolute errors of boxes; rows whose target is not finite do not count.

    boxes: [n, 10], predicted
    targets: [n, 10], see encode_boxes
    code_weights: [10], one per code of a box
    moving_weight: factor on the velocity loss of moving boxes, see ProposalsRecipe
    """
    finite = targets.isfinite().all(dim=1)
    boxes, targets = boxes[finite], targets[finite]
    errors = (boxes - targets).abs() * code_weights
    moving = targets[:, 8:].norm(dim=1, keepdim=True) > MOVING
    velocities = errors[:, 8:] * torch.where(moving, moving_weight, 1.0)
    return errors[:, :8].sum() + velocities.sum()


def detection_losses(
    output: SparseBEVOutput,
    truths: Sequence[BoxTruth],
    denoising: Denoising | None,
    code_weights: Tensor,
    moving_weight: float,
) -> dict[str, Tensor]:
    """Return every loss by its name; training minimises their sum.

    output: predictions of the denoising queries, if there are any, and then of the learnt ones
    truths: known boxes, one entry per sample
    denoising: the denoising queries and their targets; None without any
    code_weights: [10], one per code of a box
    moving_weight: factor on the velocity loss of moving boxes, see ProposalsRecipe

    "loss_cls" and "loss_bbox" are the losses of the last pass. Names of earlier passes begin with "d0.", "d1." etc.,
    names for denoising queries end in "_dn". All losses are divided by numbers of boxes averaged over the processes, so
    that the average of the gradients equals the gradient of one process with all samples.
    """
    places = 0 if denoising is None else denoising.queries.labels.shape[1]
    count, dn_count = _box_counts(truths, denoising, queries=output.logits.shape[2] - places)
    targets = [encode_boxes(truth.boxes) for truth in truths]
    dn_targets = None if denoising is None else encode_boxes(denoising.boxes)
    losses = {}
    for layer, (logits, boxes) in enumerate(zip(output.logits, output.boxes, strict=True)):
        prefix = "" if layer == len(output.logits) - 1 else f"d{layer}."
        if denoising is not None and dn_targets is not None:
            rows = denoising.sample, denoising.place
            losses[f"{prefix}loss_cls_dn"] = CLASS_WEIGHT * focal_loss(logits[rows], denoising.labels) / dn_count
            bbox = box_loss(boxes[rows], dn_targets, code_weights, moving_weight)
            losses[f"{prefix}loss_bbox_dn"] = BOX_WEIGHT * bbox / dn_count
        cls, bbox = _matching_losses(
            logits[:, places:], boxes[:, places:], truths, targets, code_weights, moving_weight
        )
        losses[f"{prefix}loss_cls"] = CLASS_WEIGHT * cls / count
        losses[f"{prefix}loss_bbox"] = BOX_WEIGHT * bbox / count
    return losses


def loss_names(layers: int, denoising: bool) -> tuple[str, ...]:
    """Return the names of the losses of detection_losses for a decoder of `layers` passes."""
    prefixes = ("", *(f"d{layer}." for layer in range(layers - 1)))
    suffixes = ("", "_dn") if denoising else ("",)
    return tuple(
        f"{prefix}{loss}{suffix}" for suffix in suffixes for prefix in prefixes for loss in ("loss_cls", "loss_bbox")
    )


def _matching_losses(
    logits: Tensor,
    boxes: Tensor,
    truths: Sequence[BoxTruth],
    targets: Sequence[Tensor],
    code_weights: Tensor,
    moving_weight: float,
) -> tuple[Tensor, Tensor]:
    """Match queries with known boxes, and return the sums of the class losses and of the box losses.

    logits: [B, Q, classes]
    boxes: [B, Q, 10]
    truths: known boxes, one entry per sample
    targets: per sample [n, 10], the same boxes in the form of encode_boxes
    code_weights: see box_loss
    moving_weight: see box_loss
    """
    wanted = torch.full(logits.shape[:2], logits.shape[2], device=logits.device)  # no class
    bbox = boxes.new_zeros(())
    for b, (truth, target) in enumerate(zip(truths, targets, strict=True)):
        queries, known = assign(logits[b], boxes[b], truth.labels, target, code_weights)
        wanted[b, queries] = truth.labels[known]
        bbox = bbox + box_loss(boxes[b, queries], target[known], code_weights, moving_weight)
    return focal_loss(logits.flatten(0, 1), wanted.flatten()), bbox


def _box_counts(truths: Sequence[BoxTruth], denoising: Denoising | None, queries: int) -> tuple[Tensor, Tensor]:
    """Return the divisors of the matching losses and of the denoising losses."""
    matched = sum(min(len(truth.labels), queries) for truth in truths)
    counts = average_count([matched, 0 if denoising is None else len(denoising.labels)], truths[0].boxes.device)
    matching, noisy = (counts.clamp(min=1) + COUNT_EPS).unbind()
    return matching, noisy
