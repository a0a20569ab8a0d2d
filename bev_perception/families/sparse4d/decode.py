"""Decode the raw outputs of the model into boxes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bev_perception.families.sparse4d.anchors import CENTER, COS, SIN, SIZE, VELOCITY
from bev_perception.families.sparse4d.config import DecodeConfig
from bev_perception.families.sparse4d.outputs import Sparse4DOutput
from bev_perception.models.protocol import NotFiniteError
from bev_perception.types import NO_TRACK, Boxes3D


@dataclass(frozen=True)
class Decoded:
    """The boxes of one frame.

    boxes: in the reference frame, in descending order of score
    class_scores: [n], the class scores of the boxes, in descending order. With quality, boxes are ordered by class
        score times centerness instead, so class_scores[i] need not be that of boxes[i]
    """

    boxes: Boxes3D
    class_scores: np.ndarray

    def tracked(self, threshold: float) -> Boxes3D:
        """Return the boxes, of which only the first K keep their track id (the published rule).

        K is the number of boxes with a class score of at least `threshold`.
        """
        ids = self.boxes.track_ids
        if ids is None:
            return self.boxes
        return replace(self.boxes, track_ids=np.where(self.class_scores >= threshold, ids, NO_TRACK))


def decode_boxes(
    outputs: Sparse4DOutput, config: DecodeConfig, class_names: tuple[str, ...], one_each: bool, sample: int = 0
) -> Decoded:
    """Return the best boxes of one sample of a batch, in the model's reference frame.

    outputs: of the model
    config: limits on the boxes; score_threshold and max_num apply to class scores, before centerness counts
    class_names: names of the classes
    one_each: True: each instance gives one box, with its best class; False: one for each class, of which the best
        max_num are kept
    sample: index in the batch

    Raises NotFiniteError for outputs, or features, that are NaN or infinite.
    """
    last = outputs.last
    assert last.logits is not None  # the last stage always classifies
    scores = last.logits[sample].sigmoid()  # [N, classes]
    if one_each:
        best, labels = scores.max(dim=1)
        class_scores, rows = best.topk(min(config.max_num, len(best)))
        labels = labels[rows]
    else:
        class_scores, index = scores.flatten().topk(min(config.max_num, scores.numel()))
        rows, labels = index // scores.shape[1], index % scores.shape[1]
    anchors = last.boxes[sample, rows]
    factors = torch.ones_like(class_scores) if last.quality is None else last.quality[sample, rows, 0].sigmoid()
    # one transfer from the device: [n, 16]; labels and rows are small enough to be exact as floats
    columns = [x[:, None].to(anchors.dtype) for x in (outputs.finite.expand(len(rows)), class_scores, factors)]
    columns += [x[:, None].to(anchors.dtype) for x in (labels, rows)]
    values = torch.cat([*columns, anchors], dim=1).double().cpu().numpy()
    if not values[:, 0].all() or not np.isfinite(values).all():
        raise NotFiniteError("the model's features or outputs hold NaN or infinity; look at the weights and the images")
    class_scores_, labels_, rows_ = values[:, 1], values[:, 3].astype(np.int64), values[:, 4].astype(np.int64)
    ids = None if outputs.ids is None else outputs.ids[sample, rows_]
    boxes = _to_boxes(class_scores_ * values[:, 2], labels_, values[:, 5:], class_names, ids)
    kept = class_scores_ >= config.score_threshold
    if last.quality is not None:
        order = np.argsort(-boxes.scores, kind="stable")
        boxes, kept = boxes.select(order), kept[order]
    if not np.isfinite(boxes.sizes).all():
        raise NotFiniteError("the model says of boxes that they are infinitely large; look at the weights")
    return Decoded(boxes.select(kept), class_scores_[kept])


def _to_boxes(
    scores: np.ndarray, labels: np.ndarray, anchors: np.ndarray, class_names: tuple[str, ...], ids: np.ndarray | None
) -> Boxes3D:
    """Return boxes from scores [n], labels [n], anchors [n, 11] and track ids [n]."""
    with np.errstate(over="ignore"):  # decode_boxes checks the result
        sizes = np.exp(anchors[:, SIZE])
    yaws = np.arctan2(anchors[:, SIN], anchors[:, COS])
    velocities = anchors[:, VELOCITY][:, :2]
    return Boxes3D(anchors[:, CENTER], sizes, yaws, velocities, scores, labels, class_names, ids)


def best_class(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores [..., N] and labels [..., N] of each instance's best class, of logits [..., N, classes]."""
    scores, labels = logits.max(dim=-1)
    return scores.sigmoid(), labels
