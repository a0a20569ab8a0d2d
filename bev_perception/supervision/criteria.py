"""Losses and costs that families share: the focal loss, optimal matching, counts over all processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

CLASS_WEIGHT, BOX_WEIGHT = 2.0, 0.25


FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


#: added to probabilities before their logarithm is taken as a cost
COST_EPS = 1e-12


#: what an infinite or undefined cost counts as
WORST_COST = 100.0


def focal_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Return what it costs [Q, n] to call a query by a class, as in the focal loss: logits [Q, classes], labels [n]."""
    probability = logits.sigmoid()
    found = FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * -(probability + COST_EPS).log()
    missed = (1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * -(1 - probability + COST_EPS).log()
    return (found - missed)[:, labels]


def match(cost: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and columns [min(Q, n)] of the one-to-one matching of least total cost [Q, n]."""
    finite = cost.nan_to_num(nan=WORST_COST, posinf=WORST_COST, neginf=-WORST_COST)
    rows, columns = linear_sum_assignment(finite.cpu().numpy())
    return torch.from_numpy(rows).to(cost.device), torch.from_numpy(columns).to(cost.device)


#: the reference divides by the number of boxes plus this (the smallest step of float32 at 1)
COUNT_EPS = 1.1920928955078125e-07


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the sigmoid focal loss (Lin et al., ICCV 2017).

    logits: [n, classes].  labels: [n] int64; `classes` stands for no class at all.
    """
    wanted = F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits)
    probability = logits.sigmoid()
    wrong = torch.where(wanted > 0, 1 - probability, probability)
    weight = torch.where(wanted > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA) * wrong**FOCAL_GAMMA
    return (weight * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).sum()


def average_count(counts: Sequence[int], device: torch.device) -> Tensor:
    """Return numbers of this process, averaged over all that train together, [n] float64."""
    values = torch.tensor(counts, device=device, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
