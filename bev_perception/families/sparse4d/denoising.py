"""Denoising instances: noisy copies of known boxes, some of which live on in the next frame.

After Lin et al., Sparse4D v3, 2023, section 3.1.

Every group holds a slightly moved and a far moved copy of each known box. Within a group, copies and boxes are matched
one to one: the matched copies learn their box, the others that they are no object. Some groups are remembered, like the
bank remembers instances, and take the place of new groups in the next frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bev_perception.families.sparse4d.outputs import DenoisingInstances
from bev_perception.families.sparse4d.targets import TARGET_SIZE, BoxRules, encode_boxes
from bev_perception.families.sparse4d.truths import InstanceTruth
from bev_perception.supervision.criteria import BOX_WEIGHT, match

#: labels of a place without a box, and of a copy that no box is matched with
PADDING, NEGATIVE = -1, -3
#: id of an instance that is no object
NOBODY = -1


@dataclass(frozen=True)
class DenoisingDraws:
    """Random numbers for B samples of up to M known boxes in G groups.

    noise: [B, G, M, 10], uniform in 0..1, of the near copies.
    distance: [B, G, M, 10], uniform in 0..1, how far the far copies lie.
    sign: [B, G, M, 10], uniform in 0..1, to which side they lie.
    order: [G] int64, a permutation of the groups; those with the lowest numbers are remembered.
    """

    noise: Tensor
    distance: Tensor
    sign: Tensor
    order: Tensor


def draw_denoising(boxes: int, groups: int, generators: Sequence[torch.Generator]) -> DenoisingDraws:
    """Sample the random numbers for up to `boxes` known boxes of each sample from its generator on the CPU."""
    drawn = [torch.rand((3, groups, boxes, TARGET_SIZE), generator=generator) for generator in generators]
    order = torch.randperm(groups, generator=generators[0])
    noise, distance, sign = torch.stack(drawn, dim=1)
    return DenoisingDraws(noise, distance, sign, order)


@dataclass(frozen=True)
class Denoising:
    """D = G * 2M denoising instances of each sample, group by group, and their targets.

    anchors: [B, D, 11].
    boxes: [B, D, 10], targets; zeros for what is no object.
    labels: [B, D] int64; PADDING, NEGATIVE or another negative number for what is no object.
    valid: [B, D] bool, instances that count in the losses.
    ids: [B, D] int64 of the objects; NOBODY for what is no object.
    groups: G.
    """

    anchors: Tensor
    boxes: Tensor
    labels: Tensor
    valid: Tensor
    ids: Tensor
    groups: int


def known_boxes(truths: Sequence[InstanceTruth], most: int) -> int:
    """Return M, the largest number of known boxes in a sample, at most `most`."""
    return min(most, max(len(truth.labels) for truth in truths))


def make_denoising(
    truths: Sequence[InstanceTruth],
    draws: DenoisingDraws,
    noise_scale: Sequence[float],
    rules: BoxRules,
) -> Denoising:
    """Make noisy copies of the first M known boxes of every sample.

    noise_scale: [10], how far a near copy's numbers are moved at most; a far copy's are moved by one to two times that.
    """
    boxes, labels, ids = _padded(truths, draws.noise.shape[2])  # [B, M, 10], [B, M], [B, M]
    groups = draws.noise.shape[1]
    scale = boxes.new_tensor(noise_scale)
    near = 2 * draws.noise.to(boxes) - 1
    far = (1 + draws.distance.to(boxes)) * torch.where(draws.sign.to(boxes) > 0.5, 1.0, -1.0)
    copies = boxes[:, None, None] + scale * torch.stack([near, far], dim=2)  # [B, G, 2, M, 10]
    copies = copies.flatten(2, 3)  # [B, G, 2M, 10]
    rows, columns = _match_groups(copies, boxes, rules)  # [B, G, M]

    def scattered(values: Tensor, rest: int) -> Tensor:
        taken = values[:, None].expand(-1, groups, *values.shape[1:])  # [B, G, M, ...]
        index, source = (i.view(i.shape + (1,) * (values.ndim - 2)).expand_as(taken) for i in (rows, columns))
        full = torch.full((*copies.shape[:3], *values.shape[2:]), rest, dtype=values.dtype, device=values.device)
        return full.scatter(2, index, taken.gather(2, source))

    wanted = scattered(labels, NEGATIVE)
    real = (labels != PADDING)[:, None].repeat(1, groups, 2)  # [B, G, 2M], copies of boxes that exist
    valid = (wanted >= 0) | ((wanted == NEGATIVE) & real)
    no_vertical_speed = copies.new_zeros((*copies.shape[:3], 1))
    return Denoising(
        anchors=torch.cat([copies, no_vertical_speed], dim=-1).flatten(1, 2),
        boxes=scattered(boxes, 0).flatten(1, 2),
        labels=wanted.flatten(1, 2),
        valid=valid.flatten(1, 2),
        ids=scattered(ids, NOBODY).flatten(1, 2),
        groups=groups,
    )


def _padded(truths: Sequence[InstanceTruth], most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first M boxes [B, M, 10], labels [B, M] and ids [B, M] of every sample, padded."""
    shape, first = (len(truths), most), truths[0]
    boxes = first.boxes.new_zeros((*shape, TARGET_SIZE))
    labels, ids = first.labels.new_full(shape, PADDING), first.ids.new_full(shape, NOBODY)
    for b, truth in enumerate(truths):
        n = min(len(truth.labels), most)
        boxes[b, :n], labels[b, :n], ids[b, :n] = encode_boxes(truth.boxes[:n]), truth.labels[:n], truth.ids[:n]
    return boxes, labels, ids


@torch.no_grad()
def _match_groups(copies: Tensor, boxes: Tensor, rules: BoxRules) -> tuple[Tensor, Tensor]:
    """Return for each group which copies [B, G, M] are matched with which boxes [B, G, M], padding included.

    copies: [B, G, 2M, 10].
    boxes: [B, M, 10].
    """
    costs = BOX_WEIGHT * ((copies[:, :, :, None] - boxes[:, None, None]).abs() * rules.matching).sum(dim=-1)
    pairs = [match(cost) for cost in costs.flatten(0, 1).cpu()]
    rows, columns = (
        torch.stack(side).view(*copies.shape[:2], -1).to(boxes.device) for side in zip(*pairs, strict=True)
    )
    return rows, columns


def denoising_inputs(denoising: Denoising, instances: int) -> DenoisingInstances:
    """Return what the network takes of the denoising instances.

    instances: N, number of the other ones. These attend to each other, the denoising ones to those of their group.
    """
    count = denoising.labels.shape[1]
    group = torch.arange(count, device=denoising.labels.device) // (count // denoising.groups)
    group = torch.cat([group.new_full((instances,), -1), group])
    return DenoisingInstances(denoising.anchors, blocked=group[:, None] != group)


@dataclass(frozen=True)
class DenoisingMemory:
    """K groups of m denoising instances of each sample that live on in the next frame.

    features: [B, K, m, C].
    anchors: [B, K, m, 11] in the reference frame of their time.
    labels: [B, K, m] int64.
    valid: [B, K, m] bool.
    ids: [B, K, m] int64.
    """

    features: Tensor
    anchors: Tensor
    labels: Tensor
    valid: Tensor
    ids: Tensor


def remember(denoising: Denoising, features: Tensor, anchors: Tensor, order: Tensor, count: int) -> DenoisingMemory:
    """Return what is remembered of a frame's denoising instances: the groups k with order[k] < count.

    denoising: as it was after its own memory took its place.
    features: [B, D, C], after the last stage.
    anchors: [B, D, 11], after the last stage.
    order: [G], see DenoisingDraws.
    """
    kept = (order < count).to(features.device)
    shape = (denoising.groups, -1)
    return DenoisingMemory(
        *(
            values.unflatten(1, shape)[:, kept].detach()
            for values in (features, anchors, denoising.labels, denoising.valid, denoising.ids)
        )
    )


def recall(
    memory: DenoisingMemory, anchors: Tensor, inputs: DenoisingInstances, denoising: Denoising, usable: Tensor
) -> tuple[DenoisingInstances, Denoising]:
    """Return the denoising instances with those of the frame before, and the targets that hold after the first stage.

    The remembered groups take the places of the first groups. A remembered instance learns the box that its object has
    in this frame; if its object is gone, that it is no object.

    memory: of the frame before.
    anchors: [B, K, m, 11], those of the memory, moved to this frame.
    inputs: this frame's own denoising instances.
    denoising: their targets.
    usable: [B] bool, samples whose memory is of use.
    """
    groups, kept = denoising.groups, memory.labels.shape[1]
    size = denoising.labels.shape[1] // groups  # 2M
    own_ids, own_boxes = (v.unflatten(1, (groups, size))[:, :kept] for v in (denoising.ids, denoising.boxes))
    same = memory.ids[..., None] == own_ids[..., None, :]  # [B, K, m, 2M]
    boxes = same.to(own_boxes) @ own_boxes
    labels = torch.where(same.any(dim=-1), memory.labels, PADDING)
    where = usable[:, None].repeat(1, groups * size)
    where[:, kept * size :] = False

    def placed(values: Tensor) -> Tensor:
        full = values.new_zeros((len(values), groups, size, *values.shape[3:]))
        most = min(size, values.shape[2])
        full[:, :kept, :most] = values[:, :, :most]
        return full.flatten(1, 2)

    def replaced(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(where.view(where.shape + (1,) * (new.ndim - 2)), placed(old), new)

    updated = replace(
        denoising,
        boxes=replaced(denoising.boxes, boxes),
        labels=replaced(denoising.labels, labels),
        valid=replaced(denoising.valid, memory.valid),
        ids=replaced(denoising.ids, memory.ids),
    )
    recalled = {
        "recalled_features": placed(memory.features),
        "recalled_anchors": placed(anchors),
        "recalled": where,
    }
    return replace(inputs, **recalled), updated
