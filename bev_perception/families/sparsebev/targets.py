"""Training targets of the queries: Hungarian assignment, and denoising queries, which are noisy copies of known boxes.

The assignment follows DETR (Carion et al., ECCV 2020) with the costs of SparseBEV (Liu et al., ICCV 2023); the
denoising follows DN-DETR (Li et al., CVPR 2022).
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

#: furthest that a noisy centre may lie from the true one, in half sizes; probability of a random label
BOX_NOISE, LABEL_NOISE = 0.5, 0.5
#: probability that the velocity of a noisy copy is set to 0 before noise is added, if velocities are noisy
STOPPED = 0.5


def encode_boxes(boxes: Tensor) -> Tensor:
    """Convert boxes [n, 9] (see BoxTruth) to the codes [n, 10] that the head predicts (see SparseBEVOutput)."""
    center, size, yaw, velocity = boxes.split([3, 3, 1, 2], dim=1)
    log_size = size.log()
    return torch.cat(
        [center[:, :2], log_size[:, :2], center[:, 2:], log_size[:, 2:], yaw.sin(), yaw.cos(), velocity], dim=1
    )


@torch.no_grad()
def assign(
    logits: Tensor, boxes: Tensor, labels: Tensor, targets: Tensor, code_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Match queries and known boxes one to one at the lowest total cost; return the indices of both, [min(Q, n)].

    logits: [Q, classes]
    boxes: [Q, 10]
    labels: [n]
    targets: [n, 10], see encode_boxes
    code_weights: [10]
    """
    class_cost = focal_cost(logits, labels)
    box_cost = torch.cdist(boxes * code_weights, targets * code_weights, p=1)
    cost = CLASS_WEIGHT * class_cost + BOX_WEIGHT * box_cost
    return match(cost)


@dataclass(frozen=True)
class DenoisingDraws:
    """Random numbers for `groups` noisy copies of the n known boxes of one sample.

    center: [groups, n, 3], uniform in 0..1, shift of the centre
    flip: [groups, n], uniform in 0..1, whether the label is replaced
    label: [groups, n] int64, the class that replaces it
    stop: [groups, n], uniform in 0..1, whether the velocity is set to 0
    push: [groups, n, 2], normal, noise of the velocity
    """

    center: Tensor
    flip: Tensor
    label: Tensor
    stop: Tensor
    push: Tensor


def draw_denoising(n: int, groups: int, num_classes: int, generator: torch.Generator) -> DenoisingDraws:
    """Sample the random numbers for n boxes from a generator on the CPU."""
    return DenoisingDraws(
        torch.rand((groups, n, 3), generator=generator),
        torch.rand((groups, n), generator=generator),
        torch.randint(num_classes, (groups, n), generator=generator),
        torch.rand((groups, n), generator=generator),
        torch.randn((groups, n, 2), generator=generator),
    )


@dataclass(frozen=True)
class Denoising:
    """Denoising queries and their targets.

    queries: [B, P], for the model
    sample: [K], sample of each query that is used
    place: [K], place of each query that is used, among the P
    labels: [K], label of the known box that the query is a copy of
    boxes: [K, 9], the known box that the query is a copy of
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
    """Make noisy copies of all samples' boxes; return None if there is no box or no group.

    truths: known boxes, one entry per sample
    draws: random numbers, one entry per sample
    num_query: number of queries that are not for denoising
    pc_range: x, y, z low, then high, m
    velocity_noise: m/s, see ProposalsRecipe.denoising_velocity

    Group k of a sample takes the places from k * m on, where m is the largest number of boxes in a sample. Places that
    a sample with fewer boxes leaves unused have boxes and features of zeros; only their own group attends to them.
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
    """Return query boxes [groups, n, 10] for boxes [n, 9], with centres moved by drawn [groups, n, 3] in 0..1."""
    low, high = boxes.new_tensor(pc_range[:3]), boxes.new_tensor(pc_range[3:])
    size = boxes[:, 3:6]
    center = boxes[:, :3] + (2 * drawn - 1) * size / 2 * BOX_NOISE  # along the axes of the frame, as if yaw were 0
    relative = ((center - low) / (high - low)).clamp(0, 1)
    yaw = boxes[:, 6:7]
    rest = torch.cat([size.log(), yaw.sin(), yaw.cos(), boxes[:, 7:]], dim=1)
    return torch.cat([relative, rest.expand(len(drawn), -1, -1)], dim=-1)


def _blocked(groups: int, most: int, num_query: int, device: torch.device) -> Tensor:
    """Return the mask of DenoisingQueries: groups attend to themselves and the learnt queries, these to themselves."""
    group = torch.arange(groups, device=device).repeat_interleave(most)
    group = torch.cat([group, torch.full((num_query,), -1, device=device)])  # -1: the learnt queries
    return (group[:, None] != group) & (group >= 0)
