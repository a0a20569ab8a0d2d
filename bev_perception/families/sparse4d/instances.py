"""The instances that go on from frame to frame: the memory of versions 2 and 3.

Shapes: B batch, N instances, K of them that go on (head.num_temporal), C channels. Rows are in descending order of
confidence, and keep their place in the next frame: its first K instances are these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bev_perception.families.sparse4d.anchors import ANCHOR_SIZE, move_anchors
from bev_perception.families.sparse4d.config import Sparse4DHeadConfig
from bev_perception.geometry import invert_transform


@dataclass(frozen=True)
class Instances:
    """The best instances of a frame, for a batch of streams: a memory entry; immutable.

    features: [B, K, C]
    anchors: [B, K, 11], in the reference frame at their own time
    confidences: [B, K], 0..1, decayed over frames
    reference2global: [B, 4, 4] float64, the reference frame at their own time to the global frame
    stamps: [B] int64, ns
    ids: [B, K] int64 track ids, -1: none yet; None in training and in variants without ids
    """

    features: Tensor
    anchors: Tensor
    confidences: Tensor
    reference2global: np.ndarray
    stamps: np.ndarray
    ids: np.ndarray | None = None

    @property
    def stamp(self) -> int:
        """Stamp of the frame (ns), of a batch of 1."""
        return int(self.stamps[0])

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The tensors on the device."""
        return (self.features, self.anchors, self.confidences)


@dataclass(frozen=True)
class Recalled:
    """The instances of a past frame as they are in the current one.

    features: [B, K, C]
    anchors: [B, K, 11], in the current reference frame
    valid: [B] bool on the device, whether they are recent enough to take the place of the current frame's own
    intervals: [B], s, since the past frame where it is valid; else the trained interval
    """

    features: Tensor
    anchors: Tensor
    valid: Tensor
    intervals: Tensor


def seconds_between(since: np.ndarray, until: np.ndarray) -> np.ndarray:
    """Return until - since, [B] float64, s, of stamps [B] int64, ns; subtracted before the conversion to float."""
    return (until - since).astype(np.float64) / 1e9


def still_valid(past: Instances, stamps: np.ndarray, max_gap: float) -> np.ndarray:
    """Return [B] bool: whether past instances are at most `max_gap` s away from the stamps [B], ns, of a frame."""
    valid: np.ndarray = np.abs(seconds_between(past.stamps, stamps)) <= max_gap
    return valid


def past2current(past_reference2global: np.ndarray, reference2global: np.ndarray) -> np.ndarray:
    """Return [B, 4, 4] float64, from the reference frames of past frames to those of the current ones."""
    return invert_transform(reference2global) @ past_reference2global


class InstanceBank(nn.Module):
    """The learnt instances that every frame starts with, and the rules by which past ones join them.

    interval: s, trained, which is assumed where there is no valid past frame
    max_gap: s, beyond which past instances do not take the place of current ones
    """

    def __init__(self, head: Sparse4DHeadConfig, interval: float, max_gap: float) -> None:
        """Build the bank; its anchors are spread evenly, for training to start from those of k-means instead."""
        super().__init__()
        self.num_temporal, self.decay, self.swap_yaw = head.num_temporal, head.decay, head.swap_projected_yaw
        self.interval, self.max_gap = interval, max_gap
        self.anchor = nn.Parameter(spread_anchors(head.num_anchor, head.max_distance))
        # of versions 2 and 3: zeros, and never trained
        self.instance_feature = nn.Parameter(
            torch.zeros(head.num_anchor, head.embed_dims), requires_grad=not head.recurrent
        )
        if not head.recurrent:
            nn.init.xavier_uniform_(self.instance_feature)

    def start(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return the learnt features [B, N, C] and anchors [B, N, 11]."""
        return self.instance_feature.expand(batch, -1, -1), self.anchor.expand(batch, -1, -1)

    def recall(self, past: Instances, reference2global: np.ndarray, stamps: np.ndarray) -> Recalled:
        """Return past instances in the current frame.

        past: of the same streams
        reference2global: [B, 4, 4] float64, of the current frame
        stamps: [B] int64, ns, of the current frame

        Instances that are too old are returned too, marked as not valid; the published method still attends to them.
        """
        anchors = self.move(past.anchors, past, reference2global, stamps)
        seconds = seconds_between(past.stamps, stamps)
        valid = still_valid(past, stamps, self.max_gap)
        intervals = np.where(valid & (seconds != 0), seconds, self.interval)
        return Recalled(
            *(past.features, anchors, torch.from_numpy(valid).to(anchors.device)),
            torch.from_numpy(intervals).to(anchors),
        )

    def move(self, anchors: Tensor, past: Instances, reference2global: np.ndarray, stamps: np.ndarray) -> Tensor:
        """Return anchors [B, n, 11] of the past frame as they are in the current one; arguments as of `recall`."""
        transform = torch.from_numpy(past2current(past.reference2global, reference2global)).to(anchors)
        seconds = torch.from_numpy(seconds_between(stamps, past.stamps)).to(anchors)  # past minus current
        return move_anchors(anchors, transform, seconds, self.swap_yaw)

    def merge(self, recalled: Recalled, features: Tensor, anchors: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, N, C] and anchors [B, N, 11]: the recalled ones, then the best of the current ones.

        features: [B, N, C], after the first stage
        anchors: [B, N, 11], after the first stage
        logits: [B, N, classes], of the first stage

        A stream whose past is not valid keeps its current ones.
        """
        best = logits.amax(dim=-1).topk(anchors.shape[1] - self.num_temporal, dim=1).indices
        valid = recalled.valid[:, None, None]

        def joined(past: Tensor, current: Tensor) -> Tensor:
            return torch.where(valid, torch.cat([past, take_rows(current, best)], dim=1), current)

        return joined(recalled.features, features), joined(recalled.anchors, anchors)

    def select(self, logits: Tensor, past_confidences: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return which instances go on into the next frame: indices [B, K], best first, and confidences [B, K].

        logits: [B, N, classes], of the last stage
        past_confidences: [B, K], of the frame before; None for a first frame. They fade, and hold up the confidences of
            the first K instances, even of a stream whose past is not valid
        """
        confidences = logits.detach().amax(dim=-1).sigmoid()  # [B, N]
        if past_confidences is not None:
            held, free = confidences.split([self.num_temporal, confidences.shape[1] - self.num_temporal], dim=1)
            confidences = torch.cat([torch.maximum(past_confidences * self.decay, held), free], dim=1)
        best = confidences.topk(self.num_temporal, dim=1)
        return best.indices, best.values


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Return rows [B, K, C] of values [B, N, C] by their indices [B, K]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def spread_anchors(count: int, radius: float) -> Tensor:
    """Return anchors [count, 11] whose centres are spread evenly over a disc of `radius` m, one metre in size."""
    index = torch.arange(count)
    distance = radius * ((index + 0.5) / count).sqrt()
    angle = index * (torch.pi * (3 - 5**0.5))  # the golden angle
    anchors = torch.zeros(count, ANCHOR_SIZE)
    anchors[:, 0], anchors[:, 1] = distance * angle.cos(), distance * angle.sin()
    anchors[:, 7] = 1.0  # cosine of yaw 0
    return anchors
