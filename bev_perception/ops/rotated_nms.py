"""Non-maximum suppression of boxes seen from above: by the overlap of rotated boxes, or by the distance of centres.

The overlap of two rotated rectangles is exact up to rounding, in float64. In the axes of the first rectangle it is the
integral over x of the second one's upper edge minus its lower edge, both limited to the first one's extent along y;
each edge of the second rectangle adds its own integral of a piecewise linear function. Nothing depends on the order of
intersection points, so rectangles that touch, coincide or have no area need no special case.

On the CPU, a kernel compiled by numba suppresses box by box. `suppress_reference` does the same with PyTorch from the
matrix of all overlaps; it is used on a GPU and without numba, and the tests compare the kernel with it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bev_perception.ops.compiled import compile_loop

#: signature of _suppress for numba
_SIGNATURE = "int64(float64[:, ::1], float64, int64, int64[::1])"
#: corners of a rectangle of length and width 1, counter-clockwise
_UNIT = ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))


def rotated_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the intersection over union [n, m] float64 of rectangles; 0 where both have no area.

    boxes: [n, 5] x, y, length, width (not negative), yaw (rad, counter-clockwise from +x to the length)
    others: [m, 5], likewise
    """
    boxes, others = boxes.double(), others.double()
    intersection = _intersections(boxes, others)
    union = (boxes[:, 2] * boxes[:, 3])[:, None] + others[:, 2] * others[:, 3] - intersection
    return torch.where(union > 0, intersection / union, 0.0)


def rotated_nms(boxes: Tensor, scores: Tensor, threshold: float, most: int) -> Tensor:
    """Return the indices [k] int64 of the boxes that are kept, best first.

    A box is dropped if its overlap with a better one that is kept is larger than the threshold.

    boxes: [n, 5], as in rotated_iou
    scores: [n]; of equal scores the first counts as better
    threshold: intersection over union
    most: the most boxes that are kept
    """
    order = scores.argsort(descending=True, stable=True)
    ordered = boxes[order].double()
    kernel = _compiled_kernel() if boxes.device.type == "cpu" else None
    if kernel is None:
        return order[suppress_reference(rotated_iou(ordered, ordered) > threshold, most)]
    kept = np.empty(len(order), np.int64)
    count = kernel(ordered.contiguous().numpy(), threshold, most, kept)
    return order[torch.from_numpy(kept[:count])]


def circle_nms(centers: Tensor, scores: Tensor, squared_radius: float, most: int) -> Tensor:
    """Return the indices [k] int64 of the centres that are kept, best first.

    A centre is dropped if its squared distance to a better one that is kept is at most squared_radius.

    centers: [n, 2], m
    scores: [n]; of equal scores the first counts as better
    squared_radius: m^2
    most: the most centres that are kept
    """
    order = scores.argsort(descending=True, stable=True)
    ordered = centers[order].double()
    squared = (ordered[:, None] - ordered).square().sum(dim=-1)
    return order[suppress_reference(squared <= squared_radius, most)]


def suppress_reference(conflicts: Tensor, most: int) -> Tensor:
    """Return the indices [k] int64 of what is kept if everything drops what comes later and conflicts with it.

    conflicts: [n, n] bool, symmetric, in the order of priority
    most: the most that is kept
    """
    table = conflicts.cpu().numpy()
    dropped = np.zeros(len(table), bool)
    kept: list[int] = []
    for i in range(len(table)):
        if len(kept) == most:
            break
        if not dropped[i]:
            kept.append(i)
            dropped |= table[i]
    return torch.tensor(kept, dtype=torch.int64, device=conflicts.device)


def _intersections(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the areas [n, m] of the intersections of rectangles [n, 5] and [m, 5]."""
    x, y, length, width, yaw = (column[:, None] for column in boxes.unbind(dim=1))  # [n, 1] each
    turn = others[:, 4] - yaw  # [n, m]
    shift_x, shift_y = others[:, 0] - x, others[:, 1] - y
    middle_x = shift_x * yaw.cos() + shift_y * yaw.sin()  # in the axes of the first rectangle
    middle_y = shift_y * yaw.cos() - shift_x * yaw.sin()
    half = others.new_tensor(_UNIT) * others[:, None, 2:4]  # [m, 4, 2]
    c, s = turn.cos()[..., None], turn.sin()[..., None]
    corner_x = middle_x[..., None] + half[..., 0] * c - half[..., 1] * s  # [n, m, 4]
    corner_y = middle_y[..., None] + half[..., 0] * s + half[..., 1] * c
    limit_x, limit_y = length[..., None] / 2, width[..., None] / 2

    x_a, x_b = corner_x, corner_x.roll(-1, dims=-1)
    y_a, y_b = corner_y, corner_y.roll(-1, dims=-1)
    start, end = x_a.clamp(-limit_x, limit_x), x_b.clamp(-limit_x, limit_x)
    run = x_b - x_a
    slope = torch.where(run == 0, 0.0, (y_b - y_a) / run)
    y_start, y_end = y_a + slope * (start - x_a), y_a + slope * (end - x_a)
    areas = (end - start) * _mean_limited(y_start, y_end, limit_y)
    # the lower edges run towards +x, the upper ones towards -x
    return (-areas.sum(dim=-1)).clamp(min=0)


def _mean_limited(start: Tensor, end: Tensor, limit: Tensor) -> Tensor:
    """Return the mean along a straight line from start to end, each value being limited to -limit..limit."""
    rise = end - start
    crossings = [torch.where(rise == 0, 0.0, (bound - start) / rise).clamp(0, 1) for bound in (-limit, limit)]
    first, second = torch.minimum(*crossings), torch.maximum(*crossings)
    low, high = start.clamp(-limit, limit), end.clamp(-limit, limit)
    at_first, at_second = ((start + rise * t).clamp(-limit, limit) for t in (first, second))
    parts = first * (low + at_first) + (second - first) * (at_first + at_second) + (1 - second) * (at_second + high)
    return parts / 2


def _suppress(boxes: np.ndarray, threshold: float, most: int, kept: np.ndarray) -> int:
    """Suppress boxes [n, 5] in the order of priority (numba compiles this); fill in kept [n] and return the count."""
    n = len(boxes)
    dropped = np.zeros(n, np.bool_)
    corners = np.empty((4, 2))
    count = 0
    for i in range(n):
        if count == most:
            break
        if dropped[i]:
            continue
        kept[count] = i
        count += 1
        x, y, length, width, yaw = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3], boxes[i, 4]
        c, s = math.cos(yaw), math.sin(yaw)
        reach = math.hypot(length, width) / 2
        for j in range(i + 1, n):
            if dropped[j]:
                continue
            shift_x, shift_y = boxes[j, 0] - x, boxes[j, 1] - y
            length_j, width_j, turn = boxes[j, 2], boxes[j, 3], boxes[j, 4] - yaw
            if math.hypot(shift_x, shift_y) > reach + math.hypot(length_j, width_j) / 2:
                dropped[j] = threshold < 0
                continue
            middle_x, middle_y = shift_x * c + shift_y * s, shift_y * c - shift_x * s
            turn_c, turn_s = math.cos(turn), math.sin(turn)
            for k in range(4):
                half_x = length_j / 2 if k == 0 or k == 3 else -length_j / 2
                half_y = width_j / 2 if k < 2 else -width_j / 2
                corners[k, 0] = middle_x + half_x * turn_c - half_y * turn_s
                corners[k, 1] = middle_y + half_x * turn_s + half_y * turn_c
            area = 0.0
            for k in range(4):
                x_a, y_a = corners[k, 0], corners[k, 1]
                x_b, y_b = corners[(k + 1) % 4, 0], corners[(k + 1) % 4, 1]
                start = min(max(x_a, -length / 2), length / 2)
                end = min(max(x_b, -length / 2), length / 2)
                if start == end:
                    continue
                slope = (y_b - y_a) / (x_b - x_a)
                y_start, y_end = y_a + slope * (start - x_a), y_a + slope * (end - x_a)
                rise = y_end - y_start
                first, second = 0.0, 0.0
                if rise != 0:
                    lower = min(max((-width / 2 - y_start) / rise, 0.0), 1.0)
                    upper = min(max((width / 2 - y_start) / rise, 0.0), 1.0)
                    first, second = min(lower, upper), max(lower, upper)
                low = min(max(y_start, -width / 2), width / 2)
                high = min(max(y_end, -width / 2), width / 2)
                at_first = min(max(y_start + rise * first, -width / 2), width / 2)
                at_second = min(max(y_start + rise * second, -width / 2), width / 2)
                mean = first * (low + at_first) + (second - first) * (at_first + at_second)
                area -= (end - start) * (mean + (1 - second) * (at_second + high)) / 2
            area = max(area, 0.0)
            union = length * width + length_j * width_j - area
            dropped[j] = (area / union if union > 0 else 0.0) > threshold
    return count


@functools.cache
def _compiled_kernel() -> Callable[..., int] | None:
    """Return _suppress compiled by numba; without numba, warn once and return None."""
    return compile_loop(_suppress, _SIGNATURE, "boxes are suppressed")
