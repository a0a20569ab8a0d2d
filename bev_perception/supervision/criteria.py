"""Losses and matching costs that families share: focal loss, optimal matching, counts averaged over processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

CLASS_WEIGHT, BOX_WEIGHT = 2.0, 0.25
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
#: added to probabilities before the logarithm of a cost
COST_EPS = 1e-12
#: replaces infinite and NaN costs
WORST_COST = 100.0
#: added to the number of boxes that losses are divided by, as in the reference (float32's step at 1)
COUNT_EPS = 1.1920928955078125e-07


def focal_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the classification cost [Q, n] of matching each query with each object, after the focal loss.

    logits: [Q, classes].
    labels: [n] int64, the objects' classes.
    """
    probability = logits.sigmoid()
    found = FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * -(probability + COST_EPS).log()
    missed = (1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * -(1 - probability + COST_EPS).log()
    return (found - missed)[:, labels]


def match(cost: Tensor, worst: float = WORST_COST, best: float = -WORST_COST) -> tuple[Tensor, Tensor]:
    """Return the rows and columns [min(Q, n)] of the one-to-one matching with the least total cost.

    cost: [Q, n].
    worst: replaces NaN and infinity.
    best: replaces minus infinity.
    """
    finite = cost.nan_to_num(nan=worst, posinf=worst, neginf=best)
    rows, columns = linear_sum_assignment(finite.cpu().numpy())
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the sigmoid focal loss (Lin et al., ICCV 2017).

    logits: [n, classes].
    labels: [n] int64; the value `classes` means none of them.
    """
    wanted = F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits)
    probability = logits.sigmoid()
    wrong = torch.where(wanted > 0, 1 - probability, probability)
    weight = torch.where(wanted > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA) * wrong**FOCAL_GAMMA
    return (weight * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).sum()


def average_count(counts: Sequence[int], device: torch.device) -> Tensor:
    """Return the counts [n] float64 averaged over all training processes."""
    values = torch.tensor(counts, device=device, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
