"""Estimate the velocities of objects that were detected in several frames, in each frame separately.

The objects of different frames are not associated with each other. So each object tries all velocities that would take
it from the place of an object of its class in another frame, and takes the one that most frames agree with: a vote, as
in generalised Hough transforms (Ballard, 1981) and RANSAC (Fischler and Bolles, 1981).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: m/s; highest speed of an object, and of the classes that are slower
MAX_SPEED = 20.0
MAX_SPEEDS = {"pedestrian": 3.0, "bicycle": 10.0, "construction_vehicle": 5.0, "traffic_cone": 0.0, "barrier": 0.0}
#: standard errors of a detected position, across and along the line of sight: m, plus a share of the distance
SIDE_ERROR, DEPTH_ERROR = (0.2, 0.015), (0.2, 0.05)
#: most standard errors that one frame adds to the cost, since the object may not have been detected in that frame
LOST = 3.0
#: costs in standard errors: of moving at all, and of each m/s across the heading
MOTION, ACROSS = 4.0, 0.5
#: s; frames closer to each other in time than this are the same frame, repeated
SAME = 1e-3


def max_speeds(class_names: Sequence[str]) -> Tensor:
    """Return the highest speed of each class, [classes], m/s."""
    return torch.tensor([MAX_SPEEDS.get(name, MAX_SPEED) for name in class_names])


def follow(
    boxes: Tensor, labels: Tensor, older: Sequence[tuple[Tensor, Tensor]], time_differences: Tensor, limits: Tensor
) -> Tensor:
    """Return the velocities [B, K, 2], m/s, of objects in the current frame, estimated from T other frames.

    boxes: [B, K, 8], see perspective.lift
    labels: [B, K] int64
    older: boxes and labels of each other frame, in the same reference frame
    time_differences: [B, T], s, current minus other; 0 for a frame that is the current one repeated
    limits: [classes], m/s, see max_speeds

    An object that no other frame supports counts as stationary, and so does one whose displacement is explained as well
    by measurement errors as by motion.
    """
    new = _new(time_differences)  # [B, T]
    velocities = _hypotheses(boxes, labels, older, time_differences, new, limits)  # [B, K, M, 2]
    speeds = velocities.norm(dim=-1)
    sin, cos = boxes[..., None, 6], boxes[..., None, 7]
    cost = MOTION * (speeds > 0) + ACROSS * (velocities[..., 1] * cos - velocities[..., 0] * sin).abs()
    matches = []
    for t, (then, classes) in enumerate(older):
        since = time_differences[:, t, None, None, None]
        apart = _errors_apart(boxes, boxes[..., None, :2] - since * velocities, then)  # [B, K, M, J]
        other = labels[:, :, None] != classes[:, None]
        errors, partner = apart.masked_fill(other[:, :, None], torch.inf).min(dim=-1)  # [B, K, M]
        cost = cost + errors.clamp(max=LOST) * new[:, t, None, None]
        matches.append((errors, partner))
    best = cost.argmin(dim=-1, keepdim=True)  # [B, K, 1]
    refined = _fit(boxes, best, matches, older, time_differences, new)
    return torch.where(speeds.gather(2, best) > 0, refined, 0.0)


def _new(time_differences: Tensor) -> Tensor:
    """Return [B, T] bool, whether each frame differs from the one before it; the first, from the current frame."""
    before = torch.cat([torch.zeros_like(time_differences[:, :1]), time_differences[:, :-1]], dim=1)
    return (time_differences - before).abs() > SAME


def _hypotheses(
    boxes: Tensor,
    labels: Tensor,
    older: Sequence[tuple[Tensor, Tensor]],
    time_differences: Tensor,
    new: Tensor,
    limits: Tensor,
) -> Tensor:
    """Return the candidate velocities [B, K, M, 2], m/s, of each object; the first and all impossible ones are 0."""
    found = [torch.zeros_like(boxes[:, :, None, :2])]
    for t, (then, classes) in enumerate(older):
        since = torch.where(new[:, t], time_differences[:, t], 1.0)[:, None, None, None]
        velocities = (boxes[:, :, None, :2] - then[:, None, :, :2]) / since  # [B, K, J, 2]
        possible = (labels[:, :, None] == classes[:, None]) & new[:, t, None, None]
        possible &= velocities.norm(dim=-1) < limits[labels][..., None]
        found.append(torch.where(possible[..., None], velocities, 0.0))
    return torch.cat(found, dim=2)


def _errors_apart(boxes: Tensor, places: Tensor, then: Tensor) -> Tensor:
    """Return how much objects at M candidate places differ from the objects of another frame, [B, K, M, J].

    boxes: [B, K, 8]
    places: [B, K, M, 2], m
    then: [B, J, 8], the objects of the other frame

    The difference is in standard errors, of the position and of the sizes together.
    """
    distance = boxes[..., :2].norm(dim=-1, keepdim=True).clamp(min=1e-3)  # [B, K, 1]
    x, y = (boxes[..., :2] / distance).unsqueeze(2).unbind(dim=-1)  # [B, K, 1], unit vector along the line of sight
    others = then[:, None]  # [B, 1, J, 8]
    apart = (boxes[:, :, None, 3:6] - others[..., 3:6]).abs().sum(dim=-1)[:, :, None] ** 2  # [B, K, 1, J], log sizes
    for (u, v), (least, share) in (((x, y), DEPTH_ERROR), ((-y, x), SIDE_ERROR)):
        here = places[..., 0] * u + places[..., 1] * v  # [B, K, M]
        there = others[..., 0] * u + others[..., 1] * v  # [B, K, J]
        error = (least + share * distance)[..., None]
        apart = apart + ((here[..., None] - there[:, :, None]) / error) ** 2
    return apart.sqrt()


def _fit(
    boxes: Tensor,
    best: Tensor,
    matches: Sequence[tuple[Tensor, Tensor]],
    older: Sequence[tuple[Tensor, Tensor]],
    time_differences: Tensor,
    new: Tensor,
) -> Tensor:
    """Return the least-squares velocities [B, K, 2], m/s, through the places in all frames that agree.

    best: [B, K, 1], index of the chosen candidate velocity
    matches: of each frame, errors and partners [B, K, M]

    Other arguments are as in follow and _new.
    """
    moved, squares = torch.zeros_like(boxes[..., :2]), torch.zeros_like(boxes[..., :1])
    for t, ((errors, partner), (then, _)) in enumerate(zip(matches, older, strict=True)):
        since = time_differences[:, t, None, None]
        agrees = (errors.gather(2, best) < LOST) & new[:, t, None, None]  # [B, K, 1]
        place = then[..., :2].gather(1, partner.gather(2, best).expand(-1, -1, 2))
        moved = moved + torch.where(agrees, since * (boxes[..., :2] - place), 0.0)
        squares = squares + torch.where(agrees, since**2, 0.0)
    return moved / squares.clamp(min=SAME**2)
