"""Panoptic quality (Kirillov et al., CVPR 2019) of things and stuff over elements, which are voxels or rays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bev_perception.classes import THINGS

#: intersection over union above which a segment matches a true one
MATCH_IOU = 0.5


@dataclass(frozen=True)
class SegmentCounts:
    """Numbers of segments by threshold (T) and class (C, free included).

    matched: [T, C] int64, true segments that were found
    false: [T, C] int64, predicted segments without a true one
    missed: [T, C] int64, true segments that were not found
    iou_sum: [T, C], sum of the intersections over union of the matched ones
    """

    matched: np.ndarray
    false: np.ndarray
    missed: np.ndarray
    iou_sum: np.ndarray

    def __add__(self, other: SegmentCounts) -> SegmentCounts:
        """Return the counts of both."""
        return SegmentCounts(
            self.matched + other.matched,
            self.false + other.false,
            self.missed + other.missed,
            self.iou_sum + other.iou_sum,
        )

    @property
    def present(self) -> np.ndarray:
        """[C] bool, the classes that have a segment in the truth."""
        return (self.matched + self.missed).any(axis=0)

    @property
    def quality(self) -> np.ndarray:
        """[T, C] panoptic quality, NaN for classes without segments."""
        matched, wrong = self.matched, self.false / 2 + self.missed / 2
        quality = self.iou_sum / np.maximum(matched, 1e-5) * (matched / np.maximum(matched + wrong, 1e-5))
        return np.where(matched + wrong > 0, quality, np.nan)


def truth_ids(labels: np.ndarray, instances: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Return the segment [N] int64 of every element, numbered within its class.

    An instance of THINGS is a segment of its own if all of its elements have the same class. All other elements of a
    class form one segment.

    labels: [N], classes as indices into class_names
    instances: [N]
    class_names: the last is free
    """
    has = np.zeros((int(instances.max(initial=0)) + 1, 256), bool)  # whether an instance has elements of a class
    has[instances, labels] = True
    whole = has.sum(axis=1) == 1
    whole[0] = False
    things = [label for label, name in enumerate(class_names) if name in THINGS]
    return np.where(np.isin(labels, things) & whole[instances], instances, 0).astype(np.int64)


def count_segments(
    truth: np.ndarray,
    true_ids: np.ndarray,
    found: np.ndarray,
    found_ids: np.ndarray,
    agreed: np.ndarray,
    classes: int,
    smallest: int,
) -> SegmentCounts:
    """Match the segments of one sample.

    truth: [N] labels; elements with the last class, or a label beyond, are in no segment
    true_ids: [N], not negative, segment within the class
    found: [N] predicted labels
    found_ids: [N], not negative, predicted segment within the class
    agreed: [T, N] bool, elements that may count as intersection, for each threshold
    classes: number of classes, free included
    smallest: unmatched segments of fewer elements are not counted
    """
    true_segment, true_class, true_area = _segments(truth, true_ids, classes)
    found_segment, found_class, found_area = _segments(found, found_ids, classes)
    comparable = true_class[:, None] == found_class  # [S, F]
    sums = []
    for agree in agreed:
        shared = agree & (true_segment >= 0) & (found_segment >= 0)
        pairs = true_segment[shared] * len(found_area) + found_segment[shared]
        common = np.bincount(pairs, minlength=comparable.size).reshape(comparable.shape)
        iou = common / (true_area[:, None] + found_area - common)
        match = comparable & (iou > MATCH_IOU)  # at most one a segment
        missed = ~match.any(axis=1) & (true_area >= smallest)
        false = ~match.any(axis=0) & (found_area >= smallest)
        sums.append(
            (
                np.bincount(true_class[match.any(axis=1)], minlength=classes),
                np.bincount(found_class[false], minlength=classes),
                np.bincount(true_class[missed], minlength=classes),
                np.bincount(true_class, (iou * match).sum(axis=1), minlength=classes),
            )
        )
    return SegmentCounts(*(np.stack(counts) for counts in zip(*sums, strict=True)))


def _segments(labels: np.ndarray, ids: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the segment of each element [N] (-1: none), and the classes and areas of the segments."""
    counted = labels < classes - 1
    keys = labels.astype(np.int64) * (int(ids.max(initial=0)) + 1) + ids
    distinct, inverse, areas = np.unique(keys[counted], return_inverse=True, return_counts=True)
    segment = np.full(len(labels), -1, np.int64)
    segment[counted] = inverse
    return segment, distinct // (int(ids.max(initial=0)) + 1), areas
