"""The training step of Sparse4D: instances go on from step to step, and so do some of the denoising instances."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bev_perception.config import ConfigError, TrainingConfig
from bev_perception.data.anchors import read_anchors
from bev_perception.families.sparse4d.carried import Carried
from bev_perception.families.sparse4d.denoising import (
    Denoising,
    DenoisingDraws,
    denoising_inputs,
    draw_denoising,
    known_boxes,
    make_denoising,
    recall,
    remember,
)
from bev_perception.families.sparse4d.head import MapsHead
from bev_perception.families.sparse4d.instances import spread_anchors, still_valid
from bev_perception.families.sparse4d.losses import (
    dense_depth_loss,
    depth_reweighting_loss,
    detection_loss_names,
    detection_losses,
)
from bev_perception.families.sparse4d.model import Sparse4D
from bev_perception.families.sparse4d.outputs import DenoisingInstances, Sparse4DOutput
from bev_perception.families.sparse4d.targets import BoxRules, box_rules
from bev_perception.families.sparse4d.truths import InstanceTruth
from bev_perception.families.sparse4d.views import Views
from bev_perception.models.query_layers import EncodedViews
from bev_perception.supervision.samples import Batch, BatchGeometry, sample_generators
from bev_perception.supervision.step import TrainingStep

#: s; older frames are no history
MAX_AGE = 5.0


@dataclass(frozen=True)
class Noise:
    """The denoising of a step.

    inputs: for the network.
    first: targets of the first stage.
    later: targets of the other stages, where instances of the step before have taken the places of some.
    order: [groups], see DenoisingDraws.
    """

    inputs: DenoisingInstances
    first: Denoising
    later: Denoising
    order: Tensor


class InstanceStep(TrainingStep[InstanceTruth]):
    """Training step of all versions; the memory is a batch of Carried, as plain values."""

    model: Sparse4D

    def __init__(self, model: Sparse4D, recipe: TrainingConfig, precision: str) -> None:
        """Keep the model; `precision` must be a key of PRECISIONS."""
        super().__init__(model, recipe, precision)
        head, groups = model.config.head, recipe.family.denoising.groups
        if groups and not head.recurrent:
            raise ConfigError("training.family.denoising.groups must be 0 where head.temporal is 'maps'")
        self.loss_names = detection_loss_names(head.num_layers, head.quality, groups > 0)
        if not head.recurrent:
            self.loss_names += ("loss_depth",)
        elif head.depth_levels:
            self.loss_names += ("loss_dense_depth",)

    def begin(self) -> None:
        """Take the anchors of the recipe's file, if it names one."""
        if self.recipe.family.anchors:
            start_from(self.model, self.recipe.family.anchors)

    def decoder_passes(self) -> Iterable[nn.Module]:
        """Return the layers of all stages."""
        return self.model.head.layers

    def forward(self, batch: Batch[InstanceTruth], memory: Any) -> tuple[dict[str, Tensor], Any]:
        """Return the losses of the batch, and the instances that the next step continues from."""
        generators = sample_generators(batch)
        views = views_of(batch, self.encode(batch, generators))
        focals = focal_lengths(batch.geometry).to(batch.reference2image)
        settings = self.recipe.family.denoising
        most = known_boxes(batch.truths, settings.max_boxes)
        draws = draw_denoising(most, settings.groups, generators) if settings.groups and most else None
        losses, memory, _ = self.learn(views, batch.truths, focals, draws, memory)
        return losses, memory

    def learn(
        self,
        views: Sequence[Views],
        truths: Sequence[InstanceTruth],
        focals: Tensor,
        draws: DenoisingDraws | None,
        memory: Any,
    ) -> tuple[dict[str, Tensor], Any, Sparse4DOutput]:
        """Return the losses of encoded frames, what to remember, and the network's outputs.

        views: the current frame, then past ones.
        truths: known boxes, one entry per sample.
        focals: [B, N], see focal_lengths.
        draws: random numbers of the denoising; None for a step without.
        memory: see `forward`.
        """
        before = None if memory is None else Carried.from_plain(memory, focals.device)
        rules = box_rules(self.recipe.family, self.model.config.class_names, views[0].reference2image)
        noise = None if draws is None else self._noise(truths, draws, views[0], before, rules)
        past, inputs = None if before is None else before.instances, None if noise is None else noise.inputs
        output = self.model.detect(views, past, inputs)
        targets = None if noise is None else (noise.first, noise.later)
        losses = detection_losses(output, truths, targets, rules) | self._depth_losses(views[0], truths, focals)
        return losses, self._carried(output, noise), output

    def _noise(
        self,
        truths: Sequence[InstanceTruth],
        draws: DenoisingDraws,
        current: Views,
        before: Carried | None,
        rules: BoxRules,
    ) -> Noise:
        first = make_denoising(truths, draws, self.recipe.family.denoising.noise, rules)
        inputs = denoising_inputs(first, self.model.config.head.num_anchor)
        if before is None or before.denoising is None:
            return Noise(inputs, first, first, draws.order)
        bank, remembered, past = self.model.head.instance_bank, before.denoising, before.instances
        usable = torch.from_numpy(still_valid(past, current.stamps, bank.max_gap)).to(first.valid.device)
        flat = remembered.anchors.flatten(1, 2)
        moved = bank.move(flat, past, current.reference2global, current.stamps).view_as(remembered.anchors)
        inputs, later = recall(remembered, moved, inputs, first, usable)
        return Noise(inputs, first, later, draws.order)

    def _depth_losses(self, current: Views, truths: Sequence[InstanceTruth], focals: Tensor) -> dict[str, Tensor]:
        """Return the loss that teaches depths to the features, by name."""
        head, config = self.model.head, self.model.config.head
        if isinstance(head, MapsHead):
            return {"loss_depth": depth_reweighting_loss(head.depth_module, current, truths, config.num_anchor)}
        if not config.depth_levels:
            return {}
        depths = self.model.depths(current.levels, focals)
        targets = [torch.stack(level) for level in zip(*(truth.depths for truth in truths), strict=True)]
        return {"loss_dense_depth": dense_depth_loss(depths, targets)}

    def _carried(self, output: Sparse4DOutput, noise: Noise | None) -> Any:
        if output.instances is None:
            return None
        denoising = None
        if noise is not None and output.denoising_features is not None:
            kept = self.recipe.family.denoising.remembered
            boxes = output.denoising[-1].boxes
            denoising = remember(noise.later, output.denoising_features, boxes, noise.order, kept)
        return Carried(output.instances, denoising).to_plain()


def start_from(model: Sparse4D, path: str) -> None:
    """Give a fresh network the anchors in a file; a network that has learnt others keeps those.

    Raises UserError for a file that cannot be used.
    """
    anchors = model.head.instance_bank.anchor
    fresh = spread_anchors(len(anchors), model.config.head.max_distance)
    if torch.equal(anchors.detach().cpu(), fresh):
        anchors.data.copy_(torch.from_numpy(read_anchors(path, len(anchors))))


def views_of(batch: Batch[InstanceTruth], encoded: EncodedViews) -> list[Views]:
    """Return the current frame of a batch, then the past ones that a sample at least has."""
    geometry, ages = batch.geometry, batch.time_differences  # ages: [B, T] s
    exists = usable_frames(ages)  # [B, T]
    # the frame of a past lidar is not known, but the vehicle's motion is, between two images of the same camera
    ego = geometry.ego2global[:, :, 0]  # [B, T, 4, 4]
    reference2global = ego @ torch.linalg.inv(ego[:, :1]) @ geometry.reference2global[:, None]
    current2past = torch.linalg.inv(reference2global) @ geometry.reference2global[:, None]
    to_image = batch.reference2image.double() @ torch.linalg.inv(current2past)[:, :, None]
    seconds = torch.where(exists, ages, 0.0).double().cpu().numpy()  # of frames that are no history anything may do
    stamps = batch.stamps.cpu().numpy()[:, None] - np.rint(seconds * 1e9).astype(np.int64)
    return [
        Views(
            levels=levels,
            reference2image=to_image[:, t].to(batch.reference2image),
            image_size=encoded.image_size,
            present=torch.ones(to_image.shape[:1] + to_image.shape[2:3], dtype=torch.bool, device=to_image.device),
            reference2global=reference2global[:, t].cpu().numpy(),
            stamps=stamps[:, t],
            exists=exists[:, t].cpu().numpy(),
        )
        for t, levels in enumerate(encoded.levels_by_frame[: int(exists.any(dim=0).sum())])
    ]


def usable_frames(ages: Tensor) -> Tensor:
    """Return which frames are usable, [B, T] bool: the current one and those that its history reaches.

    ages: [B, T] s, ascending. Where there is no further past, frames repeat, or are infinitely old.
    """
    usable = (ages[:, 1:] > ages[:, :-1]) & (ages[:, 1:] <= MAX_AGE)
    return torch.cat([torch.ones_like(ages[:, :1], dtype=torch.bool), usable.cumprod(dim=1).bool()], dim=1)


def focal_lengths(geometry: BatchGeometry) -> Tensor:
    """Return the focal length [B, N] (pixels, along rows) of the current images, after their resize."""
    resize = torch.linalg.det(geometry.source2image[:, 0, :, :2, :2]).abs().sqrt()
    return geometry.intrinsics[:, 0, :, 0, 0] * resize
