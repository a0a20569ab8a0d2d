"""Losses of the heatmaps, boxes, depths and voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bev_perception.families.bevdet.centerpoint_head import TaskMaps
from bev_perception.families.bevdet.config import BEVDetHeadConfig
from bev_perception.families.bevdet.model import BEVDetOutput
from bev_perception.families.bevdet.recipe import BEVDetRecipe
from bev_perception.families.bevdet.targets import NO_DEPTH, TaskTarget, task_targets
from bev_perception.families.bevdet.truths import DetectionTruth, VoxelTruth
from bev_perception.supervision.criteria import COST_EPS, average_count

#: probabilities are kept this far from 0 and 1
MARGIN = 1e-4
#: exponents of the focal loss: of wrong probabilities, and of the distance of a cell's target from 1
FOCUS, FALL_OFF = 2, 4
#: added to the number of boxes that losses are divided by
COUNT_MARGIN = 1e-4
#: the losses of boxes, and the codes that each is about
BOX_PARTS = {"xy": slice(0, 2), "z": slice(2, 3), "whl": slice(3, 6), "yaw": slice(6, 8), "vel": slice(8, 10)}


def all_losses(
    output: BEVDetOutput, truths: Sequence[DetectionTruth | VoxelTruth], head: BEVDetHeadConfig, recipe: BEVDetRecipe
) -> dict[str, Tensor]:
    """Return the losses of a variant by their names; training minimises their sum.

    output: of the network
    truths: of each sample; of a detector all DetectionTruth, of an occupancy model all VoxelTruth
    head: settings of the variant
    recipe: the weights
    """
    losses: dict[str, Tensor] = {}
    if recipe.depth_weight:
        labels = torch.stack([truth.depths for truth in truths if truth.depths is not None])
        losses["loss_depth"] = recipe.depth_weight * depth_loss(output.depth, labels)
    if output.occupancy is not None:
        voxels = [truth for truth in truths if isinstance(truth, VoxelTruth)]
        semantics, counted = (torch.stack([getattr(v, name) for v in voxels]) for name in ("semantics", "counted"))
        losses["loss_occ"] = recipe.occupancy_weight * occupancy_loss(output.occupancy, semantics, counted)
        return losses
    assert head.boxes is not None
    boxes = [truth for truth in truths if isinstance(truth, DetectionTruth)]
    targets = [task_targets(truth, head.boxes, head.grid, recipe) for truth in boxes]
    return losses | detection_losses(output.tasks, targets, recipe)


def all_loss_names(head: BEVDetHeadConfig, recipe: BEVDetRecipe) -> tuple[str, ...]:
    """Return the names of the losses of all_losses."""
    depth = ("loss_depth",) if recipe.depth_weight else ()
    return (*depth, *(("loss_occ",) if head.boxes is None else detection_loss_names(len(head.boxes.tasks))))


def detection_losses(
    maps: Sequence[TaskMaps], targets: Sequence[Sequence[TaskTarget]], recipe: BEVDetRecipe
) -> dict[str, Tensor]:
    """Return the losses of every task by their names; training minimises their sum.

    maps: of each task
    targets: of each sample, those of each task
    recipe: the weights

    Sums are divided by the number of objects averaged over the processes, so that the average of the gradients equals
    the gradient of one process with all samples.
    """
    losses: dict[str, Tensor] = {}
    for t, (task, wanted) in enumerate(zip(maps, zip(*targets, strict=True), strict=True)):
        losses |= {f"task{t}.loss_{name}": loss for name, loss in _task_losses(task, wanted, recipe).items()}
    return losses


def detection_loss_names(tasks: int) -> tuple[str, ...]:
    """Return the names of the losses of detection_losses."""
    return tuple(f"task{t}.loss_{name}" for t in range(tasks) for name in ("heatmap", *BOX_PARTS))


def _task_losses(maps: TaskMaps, targets: Sequence[TaskTarget], recipe: BEVDetRecipe) -> dict[str, Tensor]:
    heatmaps = torch.stack([target.heatmap for target in targets])
    counts = [int((heatmaps == 1).sum()), sum(len(target.cells) for target in targets)]
    peaks, boxes = average_count(counts, heatmaps.device)
    found = maps.codes.flatten(2)
    codes = torch.cat([found[b, :, target.cells].T for b, target in enumerate(targets)])  # [n, 10]
    weights = codes.new_tensor(recipe.code_weights) * recipe.box_weight
    errors = (codes - torch.cat([target.codes for target in targets])).abs() * weights
    divisor = boxes.clamp(min=COUNT_MARGIN) + COUNT_MARGIN
    losses = {"heatmap": recipe.heatmap_weight * gaussian_focal_loss(maps.heatmap, heatmaps) / peaks.clamp(min=1)}
    losses |= {name: errors[:, part].sum() / divisor for name, part in BOX_PARTS.items()}
    return {name: loss.to(found.dtype) for name, loss in losses.items()}


def gaussian_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the focal loss of heatmaps (Law and Deng, CornerNet, ECCV 2018).

    logits: of any shape
    targets: of the same shape, 0..1; only 1 is an object, and near an object a high probability counts less
    """
    probability = logits.sigmoid().clamp(MARGIN, 1 - MARGIN)
    peak = targets == 1
    missed = -(probability + COST_EPS).log() * (1 - probability) ** FOCUS
    invented = -(1 - probability + COST_EPS).log() * probability**FOCUS * (1 - targets) ** FALL_OFF
    return torch.where(peak, missed, invented).sum()


def depth_loss(probability: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross entropy of the depths, summed over the bins and averaged over the labelled cells.

    probability: [..., D, h, w], of each bin
    labels: [..., h, w] int64, bins, or NO_DEPTH
    """
    known = labels != NO_DEPTH
    found = probability.movedim(-3, -1)[known]  # [n, D]
    wanted = F.one_hot(labels[known], found.shape[1]).to(found)
    return F.binary_cross_entropy(found, wanted, reduction="sum") / max(1, len(found))


def occupancy_loss(logits: Tensor, semantics: Tensor, counted: Tensor) -> Tensor:
    """Return the cross entropy of the voxels that count, averaged over them.

    logits: [B, X, Y, Z, classes]
    semantics: [B, X, Y, Z] uint8, classes
    counted: [B, X, Y, Z] bool
    """
    return F.cross_entropy(logits[counted], semantics[counted].long(), reduction="sum") / counted.sum().clamp(min=1)
