"""What each query should become: Hungarian assignment, and noisy copies of known boxes to be cleaned.

The assignment follows DETR (Carion et al., ECCV 2020) with the costs of SparseBEV (Liu et al., ICCV 2023); the noisy
copies follow DN-DETR (Li et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bev_perception.families.sparsebev.model import DenoisingQueries
from bev_perception.models.query_layers import PcRange
from bev_perception.supervision.criteria import BOX_WEIGHT, CLASS_WEIGHT, focal_cost, match
from bev_perception.supervision.samples import BoxTruth

#: how far a noisy centre may lie from the true one, in half sizes; the probability of a random label
BOX_NOISE, LABEL_NOISE = 0.5, 0.5
#: the probability that a noisy copy has nothing of its velocity, where velocities are noisy
STOPPED = 0.5


def encode_boxes(boxes: Tensor) -> Tensor:
    """Return boxes [n, 9] (see BoxTruth) as the head predicts them, [n, 10] (see SparseBEVOutput)."""
    center, size, yaw, velocity = boxes.split([3, 3, 1, 2], dim=1)
    log_size = size.log()
    return torch.cat(
        [center[:, :2], log_size[:, :2], center[:, 2:], log_size[:, 2:], yaw.sin(), yaw.cos(), velocity], dim=1
    )


@torch.no_grad()
def assign(
    logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor, code_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Match queries and known boxes one to one at the least total cost; return the indices of both, [min(Q, n)].

    logits: [Q, classes].  boxes: [Q, 10].  labels: [n].  targets: [n, 10], of encode_boxes.  code_weights: [10].
    """
    class_cost = focal_cost(logits, labels)
    box_cost = torch.cdist(boxes * code_weights, targets * code_weights, p=1)
    cost = CLASS_WEIGHT * class_cost + BOX_WEIGHT * box_cost
    return match(cost)


@dataclass(frozen=True)
class DenoisingDraws:
    """The chance in one sample's n known boxes, in `groups` copies.

    center: [groups, n, 3] in 0..1.  flip: [groups, n] in 0..1.  label: [groups, n] int64 class.
    stop: [groups, n] in 0..1.  push: [groups, n, 2], normal.
    """

    center: Tensor
    flip: Tensor
    label: Tensor
    stop: Tensor
    push: Tensor


def draw_denoising(n: int, groups: int, num_classes: int, generator: torch.Generator) -> DenoisingDraws:
    """Draw the noise for a sample of n boxes from a generator on the CPU."""
    return DenoisingDraws(
        torch.rand((groups, n, 3), generator=generator),
        torch.rand((groups, n), generator=generator),
        torch.randint(num_classes, (groups, n), generator=generator),
        torch.rand((groups, n), generator=generator),
        torch.randn((groups, n, 2), generator=generator),
    )


@dataclass(frozen=True)
class Denoising:
    """Noisy queries and what they should become.

    queries: for the model.  sample, place: [K], which of the queries [B, P] are used; labels: [K] and boxes: [K, 9],
    the known ones that they are copies of.
    """

    queries: DenoisingQueries
    sample: Tensor
    place: Tensor
    labels: Tensor
    boxes: Tensor


def make_denoising(
    truths: Sequence[BoxTruth],
    draws: Sequence[DenoisingDraws],
    num_query: int,
    pc_range: PcRange,
    velocity_noise: float,
) -> Denoising | None:
    """Make noisy copies of all samples' boxes; None if there is no box or no group.

    velocity_noise: m/s, see ProposalsRecipe.denoising_velocity.

    Group k of a sample takes the places k * m and on, where m is the most boxes that any sample has; what a sample
    with fewer leaves unused is a box and a feature of zeros, which its own group sees.
    """
    device = truths[0].boxes.device
    groups = len(draws[0].flip)
    most = max(len(truth.labels) for truth in truths)
    if not groups * most:
        return None
    boxes = torch.zeros((len(truths), groups, most, 10), dtype=truths[0].boxes.dtype, device=device)
    labels = torch.full((len(truths), groups, most), -1, device=device)
    for b, (truth, drawn) in enumerate(zip(truths, draws, strict=True)):
        n = len(truth.labels)
        boxes[b, :, :n] = _noisy_boxes(truth.boxes, drawn.center.to(truth.boxes), pc_range)
        if velocity_noise:
            boxes[b, :, :n, 8:] *= (drawn.stop.to(device) >= STOPPED)[..., None]
            boxes[b, :, :n, 8:] += velocity_noise * drawn.push.to(truth.boxes)
        flipped = drawn.flip.to(device) < LABEL_NOISE
        labels[b, :, :n] = torch.where(flipped, drawn.label.to(device), truth.labels)
    sample, _, known = (labels >= 0).nonzero(as_tuple=True)
    place = (labels >= 0).flatten(1).nonzero(as_tuple=True)[1]
    starts = torch.tensor([0, *(len(truth.labels) for truth in truths)], device=device).cumsum(0)
    source = starts[sample] + known
    return Denoising(
        queries=DenoisingQueries(boxes.flatten(1, 2), labels.flatten(1), _blocked(groups, most, num_query, device)),
        sample=sample,
        place=place,
        labels=torch.cat([truth.labels for truth in truths])[source],
        boxes=torch.cat([truth.boxes for truth in truths])[source],
    )


def _noisy_boxes(boxes: Tensor, drawn: Tensor, pc_range: PcRange) -> Tensor:
    """Return [groups, n, 10] query boxes of boxes [n, 9], their centres moved by drawn [groups, n, 3] in 0..1."""
    low, high = boxes.new_tensor(pc_range[:3]), boxes.new_tensor(pc_range[3:])
    size = boxes[:, 3:6]
    center = boxes[:, :3] + (2 * drawn - 1) * size / 2 * BOX_NOISE  # of the size's axes as if the yaw were 0
    relative = ((center - low) / (high - low)).clamp(0, 1)
    yaw = boxes[:, 6:7]
    rest = torch.cat([size.log(), yaw.sin(), yaw.cos(), boxes[:, 7:]], dim=1)
    return torch.cat([relative, rest.expand(len(drawn), -1, -1)], dim=-1)


def _blocked(groups: int, most: int, num_query: int, device: torch.device) -> Tensor:
    """Return the mask of DenoisingQueries: a group sees itself and the learnt queries; these see only themselves."""
    group = torch.arange(groups, device=device).repeat_interleave(most)
    group = torch.cat([group, torch.full((num_query,), -1, device=device)])  # -1: the learnt queries
    return (group[:, None] != group) & (group >= 0)
