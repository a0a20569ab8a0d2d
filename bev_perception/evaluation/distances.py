"""The mean average precision of near and far objects apart, with the functions of nuscenes-devkit."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

#: m, between near, middling and far objects, by their distance from the car
EDGES = (20.0, 40.0)


def bins() -> tuple[tuple[float, float], ...]:
    """Return the lower and upper distance of each bin, m; the last has no end."""
    ends = (0.0, *EDGES, math.inf)
    return tuple(pairwise(ends))


def name_of(bin_ends: tuple[float, float]) -> str:
    """Return what a bin is called in tables and files."""
    low, high = bin_ends
    return f"{low:g}+ m" if math.isinf(high) else f"{low:g}-{high:g} m"


def ap_by_distance(truth: Any, found: Any, config: Any) -> dict[str, float]:
    """Return bin -> mAP, 0..1, over the classes that have objects in it; NaN where none has.

    Objects and boxes count in the bin that their own distance lies in, so that a box on the other side of an edge than
    its object is a miss in one and a false positive in the other.

    truth: the devkit's EvalBoxes of the objects, with their distances
    found: those of the results
    config: the devkit's DetectionConfig
    """
    return {name_of(ends): _mean_ap(_within(truth, ends), _within(found, ends), config) for ends in bins()}


def _mean_ap(truth: Any, found: Any, config: Any) -> float:
    from nuscenes.eval.detection.algo import accumulate, calc_ap

    there = {box.detection_name for box in truth.all}
    aps = [
        calc_ap(
            accumulate(truth, found, name, config.dist_fcn_callable, threshold), config.min_recall, config.min_precision
        )
        for name in config.class_names
        if name in there
        for threshold in config.dist_ths
    ]
    return sum(aps) / len(aps) if aps else math.nan


def _within(boxes: Any, ends: tuple[float, float]) -> Any:
    """Return the boxes whose distance from the car lies in a bin."""
    from nuscenes.eval.common.data_classes import EvalBoxes

    kept = EvalBoxes()
    for token in boxes.sample_tokens:
        kept.add_boxes(token, [box for box in boxes[token] if ends[0] <= box.ego_dist < ends[1]])
    return kept
