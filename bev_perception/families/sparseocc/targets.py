"""Training targets for the masks of an occupancy model, after SparseOcc (Liu et al., ECCV 2024).

The matching of queries with target masks follows MaskFormer (Cheng et al., NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bev_perception.classes import THINGS
from bev_perception.supervision.criteria import CLASS_WEIGHT, focal_cost, match
from bev_perception.supervision.samples import NO_INSTANCE, OccupancyTruth

MASK_WEIGHT, DICE_WEIGHT = 5.0, 5.0


def mask_targets(
    semantics: np.ndarray, instances: np.ndarray | None, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the target segments: the segment number of each voxel, [X, Y, Z] int16, and the class [M] of each segment.

    semantics: [X, Y, Z]; the last class is free space
    instances: [X, Y, Z], objects from 1 on, 0 for none; None if the variant does not distinguish objects
    class_names: names of the classes; the last is free space

    Segments are numbered from 0 on. Each object of a class in THINGS is a segment if objects are distinguished; any
    other class is one segment. Free space, and voxels of THINGS that belong to no object, are NO_INSTANCE.
    """
    places = np.full(semantics.shape, NO_INSTANCE, np.int16)
    class_ids: list[int] = []
    for label, name in enumerate(class_names[:-1]):
        voxels = semantics == label
        if not voxels.any():
            continue
        if instances is None or name not in THINGS:
            places[voxels] = len(class_ids)
            class_ids.append(label)
            continue
        objects, which = np.unique(instances[voxels], return_inverse=True)
        numbers = len(class_ids) + np.arange(len(objects)) - (objects[0] == 0)
        numbers[objects == 0] = NO_INSTANCE
        places[voxels] = numbers[which]
        class_ids += [label] * np.count_nonzero(objects)
    return places, np.array(class_ids, np.int64)


@dataclass(frozen=True)
class Masks:
    """The target masks over N voxels of one sample.

    classes: [M] int64
    masks: [M, N], 1 in the mask and 0 elsewhere
    visible: [N], 1 for voxels that are compared and 0 for others; None: all are compared
    """

    classes: Tensor
    masks: Tensor
    visible: Tensor | None


def masks_at(truth: OccupancyTruth, locations: Tensor, dtype: torch.dtype) -> Masks:
    """Return the target masks over the voxels at locations [N, 3] int64; masks without any of these are left out."""
    x, y, z = locations.unbind(1)
    ids = truth.instances[x, y, z].long()  # [N]
    masks = ids == torch.arange(len(truth.class_ids), device=ids.device)[:, None]  # [M, N]; NO_INSTANCE is in no mask
    kept = masks.any(dim=1)
    visible = None if truth.visible is None else truth.visible[x, y, z].to(dtype)
    return Masks(truth.class_ids[kept], masks[kept].to(dtype), visible)


@torch.no_grad()
def assign_masks(class_logits: Tensor, mask_logits: Tensor, targets: Masks) -> tuple[Tensor, Tensor]:
    """Match queries and target masks one to one at the lowest total cost; return the indices of both, [min(Q, M)].

    class_logits: [Q, classes]
    mask_logits: [Q, N]
    targets: the masks
    """
    masks, visible, voxels = targets.masks, targets.visible, mask_logits.shape[1]
    inside, outside = F.softplus(-mask_logits), F.softplus(mask_logits)  # cross entropies if a voxel is in, is not
    probability = mask_logits.sigmoid()
    seen = masks
    if visible is not None:
        inside, outside, probability, seen = inside * visible, outside * visible, probability * visible, masks * visible
    entropy = (inside @ masks.T + outside @ (1 - masks).T) / voxels  # [Q, M]
    overlap = 2 * (probability @ seen.T) + 1
    dice = 1 - overlap / (probability.sum(1)[:, None] + seen.sum(1) + 1)
    cost = 2 * CLASS_WEIGHT * focal_cost(class_logits, targets.classes) + MASK_WEIGHT * entropy + DICE_WEIGHT * dice
    return match(cost)
