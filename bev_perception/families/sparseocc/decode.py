"""Decode the raw outputs of the model into labelled voxels; after SparseOcc (Liu et al., ECCV 2024, section 3.2).

Everything is computed on the device of the outputs; only the finished grid is copied from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bev_perception.classes import THINGS
from bev_perception.families.sparseocc.config import SparseOccHeadConfig
from bev_perception.models.protocol import NotFiniteError
from bev_perception.types import Occupancy, VoxelGrid

#: a voxel is free if the probability of its best class, added up over all masks, is less than this
SEMANTIC_FLOOR = 0.01
#: a voxel belongs to a mask if its probability is at least this
MASK_THRESHOLD = 0.5


class Voxels(Protocol):
    """Locations of voxels; see voxel_decoder.VoxelStage."""

    @property
    def locations(self) -> Tensor:
        """[B, N, 3] int64, indices into the grid."""


class OccupancyOutput(Protocol):
    """The outputs to decode; see model.SparseOccOutput. The batch is 1."""

    @property
    def stages(self) -> Sequence[Voxels]:
        """Voxels of each stage; the masks are over the voxels of the last one."""

    @property
    def class_logits(self) -> Tensor:
        """[passes, B, Q, classes without free]."""

    @property
    def mask_logits(self) -> Tensor:
        """[passes, B, Q, N]."""

    @property
    def finite(self) -> Tensor:
        """[] bool, whether everything that the logits were computed from is finite."""


def decode_occupancy(output: OccupancyOutput, config: SparseOccHeadConfig, class_names: tuple[str, ...]) -> Occupancy:
    """Return the occupancy of the last predictions; voxels that the model has not kept are free.

    output: raw outputs of the model
    config: settings of the head; a panoptic variant gives instances, and the semantics that belong to them
    class_names: names of the classes; the last is free

    Raises NotFiniteError for outputs, or features, that are NaN or infinite.
    """
    class_logits, mask_logits = output.class_logits[-1, 0], output.mask_logits[-1, 0]
    locations = output.stages[-1].locations[0]  # [N, 3]
    instances = None
    if config.panoptic:
        thresholds = config.score_threshold, config.overlap_threshold
        labels, ids = merge_panoptic(class_logits, mask_logits, class_names, *thresholds)
        instances, _ = _scatter(ids.to(torch.int16), locations, config.occ_size, 0, output.finite)
    else:
        labels = merge_semantics(class_logits, mask_logits, config.score_threshold)
    semantics, finite = _scatter(
        labels.to(torch.uint8), locations, config.occ_size, len(class_names) - 1, output.finite
    )
    if not finite:
        raise NotFiniteError("the model's features or outputs hold NaN or infinity; look at the weights and the images")
    grid = VoxelGrid(config.occ_range[:3], config.resolution, config.occ_size)
    return Occupancy(semantics, class_names, grid, instances)


def _scatter(
    values: Tensor, locations: Tensor, shape: tuple[int, int, int], background: int, finite: Tensor
) -> tuple[np.ndarray, bool]:
    """Return the grid with values [N] at locations [N, 3] and `background` everywhere else, and the flag `finite`.

    Both are copied from the device in one transfer.
    """
    dense = torch.full((math.prod(shape) + 1,), background, dtype=values.dtype, device=values.device)
    dense[:-1].view(shape)[locations.unbind(dim=1)] = values
    dense[-1] = finite
    moved = dense.cpu().numpy()
    return moved[:-1].reshape(shape), bool(moved[-1])


def merge_semantics(class_logits: Tensor, mask_logits: Tensor, score_threshold: float) -> Tensor:
    """Return the label [N] int64 of every voxel: the class with the highest probability, added up over the masks.

    class_logits: [Q, classes without free]
    mask_logits: [Q, N]
    score_threshold: queries without a class above this probability do not count

    The label of free space is the number of other classes.
    """
    scores = class_logits.sigmoid()
    scores = scores * (scores.amax(dim=1, keepdim=True) > score_threshold)
    best, labels = (scores.T @ mask_logits.sigmoid()).max(dim=0)
    return labels.where(best >= SEMANTIC_FLOOR, class_logits.shape[1])


def merge_panoptic(
    class_logits: Tensor,
    mask_logits: Tensor,
    class_names: Sequence[str],
    score_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Return the label and the instance of every voxel, [N] int64 each; instances count from 1, 0 is none (and free).

    class_logits: [Q, classes without free]
    mask_logits: [Q, N]
    class_names: names of the classes; the last is free
    score_threshold: queries without a class above this probability do not count
    overlap_threshold: lowest ratio of the voxels assigned to a query to the voxels in its mask

    Each voxel is assigned to the query with the largest product of class and mask probability. A query whose mask is
    mostly assigned to others (MaskFormer, Cheng et al., NeurIPS 2021, section 3.4) is dropped, and its voxels are free.
    Only the first query of a class outside of THINGS keeps its label; further ones join its instance, but their voxels
    are labelled free. The published numbers were computed this way.
    """
    free = len(class_names) - 1
    scores, classes = class_logits.sigmoid().max(dim=1)  # [Q]
    probabilities = mask_logits.sigmoid()  # [Q, N]
    sure = scores > score_threshold
    owner = (scores[:, None] * probabilities).where(sure[:, None], -1.0).argmax(dim=0)  # [N]

    own = torch.zeros_like(probabilities, dtype=torch.bool).scatter_(0, owner[None], True)  # [Q, N]
    mask = probabilities >= MASK_THRESHOLD
    won, whole, common = (x.sum(dim=1) for x in (own, mask, own & mask))  # [Q]
    kept = sure & (common > 0) & (won.double() / whole.clamp(min=1) >= overlap_threshold)

    stuff = torch.tensor([name not in THINGS for name in class_names], device=classes.device)[classes]
    same = (classes[:, None] == classes) & stuff & kept  # [Q, Q]: of the class of the row's query, and kept
    earlier = same.tril(diagonal=-1)
    repeated = earlier.any(dim=1)
    first = earlier.int().argmax(dim=1).where(repeated, torch.arange(len(classes), device=classes.device))
    ids = (kept & ~repeated).cumsum(dim=0)[first]

    counted = kept[owner] & mask.gather(0, owner[None])[0]  # [N]
    labels = classes.where(~repeated, free)[owner].where(counted, free)
    return labels, ids[owner].where(counted, 0)
