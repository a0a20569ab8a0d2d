"""The losses of SparseOcc (Liu et al., ECCV 2024): for the voxels of every stage, and for the masks of every pass.

The voxels of a stage are cubes of up to 4 x 4 x 4 labelled voxels, which share one prediction. Their losses are
computed from the number of labels of each class in a cube; the values equal those computed from single voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.config import ConfigError
from bev_perception.data.occupancy_labels import UNKNOWN_LABEL
from bev_perception.families.sparseocc.model import SparseOccOutput, VoxelStage
from bev_perception.families.sparseocc.targets import DICE_WEIGHT, MASK_WEIGHT, Masks, assign_masks, masks_at
from bev_perception.supervision.criteria import CLASS_WEIGHT, average_count, focal_loss
from bev_perception.supervision.samples import OccupancyTruth

#: number of voxels of each class in Occ3D's training set, from which SparseOcc computes the class weights
_COUNTS = (
    *(944004, 1897170, 152386, 2391677, 16957802, 724139, 189027, 2074468, 413451),
    *(2384460, 5916653, 175883646, 4275424, 51393615, 61411620, 105975596, 116424404, 1892500630),
)
VOXEL_COUNTS = dict(zip(OCC3D_CLASSES, _COUNTS, strict=True))
_TINY = torch.finfo(torch.float32).tiny


def class_weights(class_names: Sequence[str]) -> tuple[float, ...]:
    """Return the weights of the classes in the cross entropy: one over the logarithm of their number of voxels.

    Data sets with another order of the classes or with fewer of them (OpenOcc) get the weights of the Occ3D classes of
    the same names: thanks to the logarithm they hardly depend on the data set.

    Raises ConfigError for a name that is not a class of Occ3D.
    """
    unknown = [name for name in class_names if name not in VOXEL_COUNTS]
    if unknown:
        raise ConfigError(f"no voxel counts are known of the classes {', '.join(unknown)}; use the names of Occ3D")
    return tuple(1 / math.log(VOXEL_COUNTS[name] + 0.001) for name in class_names)


def occupancy_losses(output: SparseOccOutput, truths: Sequence[OccupancyTruth], weights: Tensor) -> dict[str, Tensor]:
    """Return every loss by its name; training minimises their sum.

    output: of the decoders
    truths: labels, one entry per sample
    weights: [classes], see class_weights

    Losses of voxels are averaged over the samples. Losses of masks are divided by the number of target masks averaged
    over the processes, so that the average of the gradients equals the gradient of one process with all samples.
    """
    losses: dict[str, Tensor] = {}
    for i, stage in enumerate(output.stages):
        samples = [_sample_losses(stage, b, truth, weights) for b, truth in enumerate(truths)]
        losses |= {f"{name}_{i}": torch.stack([s[name] for s in samples]).mean() for name in samples[0]}
    locations = output.stages[-1].locations
    targets = [masks_at(truth, locations[b], output.mask_logits.dtype) for b, truth in enumerate(truths)]
    count = average_count([sum(len(target.classes) for target in targets)], locations.device)[0].clamp(min=1)
    for j, (class_logits, mask_logits) in enumerate(zip(output.class_logits, output.mask_logits, strict=True)):
        found = _mask_losses(class_logits, mask_logits, targets)
        losses |= {f"{name}_{j}": value / count for name, value in found.items()}
    return losses


def occupancy_loss_names(stages: int, passes: int) -> tuple[str, ...]:
    """Return the names of the losses of occupancy_losses.

    stages: number of stages of the voxel decoder
    passes: number of mask predictions
    """
    voxels = ("loss_sem_lovasz", "loss_geo_scal", "loss_sem_scal", "loss_sem_ce")
    masks = ("loss_mask", "loss_dice_mask", "loss_class")
    return tuple(f"{name}_{i}" for names, n in ((voxels, stages), (masks, passes)) for i in range(n) for name in names)


def _sample_losses(stage: VoxelStage, b: int, truth: OccupancyTruth, weights: Tensor) -> dict[str, Tensor]:
    """Return the losses of the voxels of one stage for sample b."""
    logits = stage.logits[b]  # [K, C], the last class is free
    counts = count_labels(truth.semantics, stage.locations[b], stage.scale, logits.shape[1]).to(logits)  # [K, C + 1]
    labelled = counts[:, :-1]
    known = labelled.sum(1, keepdim=True)  # [K, 1]
    probability = logits.softmax(1)
    occupied, is_occupied = 1 - probability[:, -1:], known - labelled[:, -1:]
    present = labelled.sum(0) > 0
    return {
        "loss_sem_lovasz": lovasz_softmax(probability, counts),
        "loss_geo_scal": affinity(occupied, is_occupied, known).sum(),
        "loss_sem_scal": affinity(probability, labelled, known).sum() / present.sum().clamp(min=1),
        "loss_sem_ce": _cross_entropy(logits, labelled * weights),
    }


def count_labels(semantics: Tensor, locations: Tensor, scale: int, classes: int) -> Tensor:
    """Count the labels of each class in K cubes; return [K, classes + 1], the last column for UNKNOWN_LABEL.

    semantics: [X, Y, Z] uint8
    locations: [K, 3] int64, in units of cubes
    scale: labels along an edge of a cube
    classes: number of classes
    """
    size_x, size_y, size_z = (n // scale for n in semantics.shape)
    cubes = semantics.view(size_x, scale, size_y, scale, size_z, scale).permute(0, 2, 4, 1, 3, 5).flatten(3)
    x, y, z = locations.unbind(1)
    labels = cubes[x, y, z].long()  # [K, scale^3]
    labels = torch.where(labels == UNKNOWN_LABEL, classes, labels)
    counts = torch.zeros((len(locations), classes + 1), device=labels.device)
    return counts.scatter_add_(1, labels, torch.ones_like(labels, dtype=counts.dtype))


def lovasz_softmax(probability: Tensor, counts: Tensor) -> Tensor:
    """Return the Lovasz-Softmax loss (Berman et al., CVPR 2018) over the classes that occur.

    probability: [K, C], of cubes
    counts: [K, C + 1], from count_labels; unknown labels belong to no class

    All voxels of one class in a cube have the same error, so their order does not matter. The errors of a class are
    therefore sorted with two entries per cube, one for the voxels of the class and one for the other voxels.
    """
    inside = counts[:, :-1]
    present = inside.sum(0) > 0
    if not present.any():
        return (probability * 0).sum()
    probability, inside = probability[:, present], inside[:, present].double()
    outside = counts.sum(1, keepdim=True) - inside
    errors, order = torch.cat([1 - probability, probability]).sort(dim=0, descending=True)  # [2 K, C]
    nothing = torch.zeros_like(inside)
    hit = torch.cat([inside, nothing]).gather(0, order).cumsum(0)
    missed = torch.cat([nothing, outside]).gather(0, order).cumsum(0)
    total = inside.sum(0)
    jaccard = 1 - (total - hit) / (total + missed)
    steps = jaccard.diff(dim=0, prepend=torch.zeros_like(jaccard[:1]))
    return (errors * steps.to(errors)).sum(0).mean()


def affinity(probability: Tensor, inside: Tensor, known: Tensor) -> Tensor:
    """Return the scene-class affinity losses [C] (MonoScene, Cao and de Charette, CVPR 2022), 0 for absent classes.

    probability: [K, C], of cubes
    inside: [K, C], number of labels of the class in each cube
    known: [K, 1], number of labels of any class in each cube

    The loss is the sum of the negative logarithms of soft precision, recall and specificity.
    """
    outside = known - inside
    hit = (probability * inside).sum(0)
    precision = _negative_log(hit, (probability * known).sum(0))
    recall = _negative_log(hit, inside.sum(0))
    specificity = _negative_log(((1 - probability) * outside).sum(0), outside.sum(0))
    return torch.where(inside.sum(0) > 0, precision + recall + specificity, 0.0)


def _negative_log(part: Tensor, whole: Tensor) -> Tensor:
    """Return -log(part / whole), limited to 100; 0 where the whole is 0."""
    share = torch.where(whole > 0, part / whole.clamp(min=_TINY), 1.0).clamp(0, 1)
    return F.binary_cross_entropy(share, torch.ones_like(share), reduction="none")


def _cross_entropy(logits: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted cross entropy of logits [K, C]; weights: [K, C], total of a class's labels in a cube."""
    return -(weights * logits.log_softmax(1)).sum() / weights.sum().clamp(min=_TINY)


def _mask_losses(class_logits: Tensor, mask_logits: Tensor, targets: Sequence[Masks]) -> dict[str, Tensor]:
    """Match queries with target masks, and return the losses summed over all samples.

    class_logits: [B, Q, classes - 1]
    mask_logits: [B, Q, N]
    targets: one entry per sample
    """
    wanted = torch.full(class_logits.shape[:2], class_logits.shape[2], device=class_logits.device)  # no class
    entropy = dice = mask_logits.new_zeros(())
    for b, target in enumerate(targets):
        queries, known = assign_masks(class_logits[b], mask_logits[b], target)
        wanted[b, queries] = target.classes[known]
        logits, masks = mask_logits[b, queries], target.masks[known]  # [P, N]
        entropy = entropy + mask_entropy(logits, masks, target.visible).sum()
        dice = dice + mask_dice(logits, masks, target.visible).sum()
    return {
        "loss_mask": MASK_WEIGHT * entropy,
        "loss_dice_mask": DICE_WEIGHT * dice,
        "loss_class": 2 * CLASS_WEIGHT * focal_loss(class_logits.flatten(0, 1), wanted.flatten()),
    }


def mask_entropy(logits: Tensor, masks: Tensor, visible: Tensor | None) -> Tensor:
    """Return the cross entropy [P] of logits for masks, averaged over N voxels.

    logits: [P, N]
    masks: [P, N], targets
    visible: [N], weights of the voxels in the sum, which is divided by N all the same; None: all count
    """
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    return (entropy if visible is None else entropy * visible).mean(1)


def mask_dice(logits: Tensor, masks: Tensor, visible: Tensor | None) -> Tensor:
    """Return one minus the Dice coefficient [P], smoothed by 1; arguments as in mask_entropy."""
    probability = logits.sigmoid()
    if visible is not None:
        probability, masks = probability * visible, masks * visible
    return 1 - (2 * (probability * masks).sum(1) + 1) / (probability.sum(1) + masks.sum(1) + 1)
