"""The decoders: of version 1, which samples past frames, and of versions 2 and 3, which continue from instances.

Shapes: B batch, N instances, K of them from the past frame, D denoising instances, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bev_perception.families.sparse4d.aggregation import DeformableAggregation, TemporalAggregation
from bev_perception.families.sparse4d.anchors import AnchorEncoder, KeyPoints
from bev_perception.families.sparse4d.config import Sparse4DHeadConfig
from bev_perception.families.sparse4d.depth import DepthReweighting
from bev_perception.families.sparse4d.instances import InstanceBank, Instances, Recalled, take_rows
from bev_perception.families.sparse4d.layers import AsymmetricFeedForward, Attention, Refinement
from bev_perception.families.sparse4d.outputs import DenoisingInstances, Sparse4DOutput, Stage
from bev_perception.families.sparse4d.views import Views
from bev_perception.models.protocol import all_finite
from bev_perception.models.query_layers import FeedForward


@dataclass(frozen=True)
class Others:
    """Instances that are attended to.

    features: [B, m, C]
    embeds: [B, m, C], their encoded anchors
    values: [B, m, C], or [B, m, 2C] of the decoupled attention
    """

    features: Tensor
    embeds: Tensor
    values: Tensor


class Sparse4DHead(nn.Module):
    """What the decoders of all versions have in common."""

    def __init__(self, head: Sparse4DHeadConfig, interval: float, max_gap: float) -> None:
        """Build the instances and their encoder; see InstanceBank for the arguments."""
        super().__init__()
        self.config = head
        self.instance_bank = InstanceBank(head, interval, max_gap)
        self.anchor_encoder = AnchorEncoder(head.embed_dims, head.decoupled_attention)
        self.layers = nn.ModuleList()

    def stages(self) -> list[list[str]]:
        """Return the names of the layers of each stage; the refinement is the last of them."""
        stages: list[list[str]] = [[]]
        for name, layer in self.layers.named_children():
            stages[-1].append(f"layers.{name}")
            if isinstance(layer, Refinement):
                stages.append([])
        return stages[:-1]

    def _initialise(self) -> None:
        """Give the layers of the stages the published initial weights; refinements keep those that they have."""
        for layer in self.layers:
            if isinstance(layer, Refinement):
                continue
            for parameter in layer.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
            if isinstance(layer, (DeformableAggregation, TemporalAggregation)):
                nn.init.zeros_(layer.weights_fc.weight)
                nn.init.zeros_(layer.weights_fc.bias)
                nn.init.zeros_(layer.output_proj.bias)
                nn.init.zeros_(layer.kps_generator.learnable_fc.bias)
            if isinstance(layer, TemporalAggregation) and layer.temp_module is not None:
                nn.init.zeros_(layer.temp_module.fusion_layer.bias)


class MapsHead(Sparse4DHead):
    """The decoder of version 1: attention, sampling and feed-forward layers, each with a norm, then the refinement."""

    def __init__(self, head: Sparse4DHeadConfig, num_classes: int, interval: float, past_frames: int) -> None:
        """Build the decoder; see InstanceBank for the interval."""
        super().__init__(head, interval, 0.0)
        dims = head.embed_dims
        self.depth_module = DepthReweighting(dims)
        for _ in range(head.num_layers):
            self.layers.extend(
                [
                    *(Attention(dims, head.num_heads, head.dropout), nn.LayerNorm(dims)),
                    *(TemporalAggregation(head, past_frames > 0), nn.LayerNorm(dims)),
                    *(FeedForward(dims, head.ffn_dim, head.dropout), nn.LayerNorm(dims)),
                    Refinement(dims, num_classes, corrects_yaw=False, quality=False),
                ]
            )
        self._initialise()

    def forward(self, frames: Sequence[Views]) -> Sparse4DOutput:
        """Refine the instances in all stages; frames: the current one, then past ones, newest first."""
        batch, count = len(frames[0].stamps), self.config.num_layers
        features, anchors = self.instance_bank.start(batch)
        intervals = anchors.new_full((batch,), self.instance_bank.interval)
        stages: list[Stage] = []
        for index in range(count):
            attention, norm1, aggregation, norm2, feed_forward, norm3, refinement = self.layers[7 * index :][:7]
            embeds = self.anchor_encoder(anchors)
            placed = features + embeds
            features = norm1(attention(features, placed, placed, features))
            features = norm2(aggregation(frames, features, anchors, embeds, self.anchor_encoder, self.depth_module))
            features = norm3(feed_forward(features))
            stages.append(refinement(features, anchors, embeds, intervals, self.training or index == count - 1))
            anchors = stages[-1].boxes
        return _output(stages, features)


class RecurrentHead(Sparse4DHead):
    """The decoder of versions 2 and 3.

    The first stage looks at the current frame alone. Then the instances of the past frame take the place of most of the
    current ones, and each further stage begins with an attention to them.
    """

    def __init__(self, head: Sparse4DHeadConfig, num_classes: int, interval: float, max_gap: float) -> None:
        """Build the decoder; see InstanceBank for interval and max_gap."""
        super().__init__(head, interval, max_gap)
        dims = head.embed_dims
        width = 2 * dims if head.decoupled_attention else dims
        if head.decoupled_attention:
            self.fc_before = nn.Linear(dims, width, bias=False)
            self.fc_after = nn.Linear(width, dims, bias=False)
        for index in range(head.num_layers):
            if index > 0:
                self.layers.extend(Attention(width, head.num_heads, head.dropout) for _ in range(2))
                self.layers.append(nn.LayerNorm(dims))
            self.layers.extend(
                [
                    *(DeformableAggregation(head), AsymmetricFeedForward(dims, head.ffn_dim, head.dropout)),
                    *(nn.LayerNorm(dims), Refinement(dims, num_classes, True, head.quality)),
                ]
            )
        self._initialise()
        # The checkpoints of version 3 hold constants, too
        if head.decoupled_attention:
            points = [name for name, module in self.named_modules() if isinstance(module, KeyPoints)]
            self.derived_keys = [f"{name}.fix_scale" for name in (*points, "instance_bank.anchor_handler")]

    def forward(
        self, views: Views, past: Instances | None = None, denoising: DenoisingInstances | None = None
    ) -> Sparse4DOutput:
        """Refine the instances in all stages; arguments as of Sparse4D.detect."""
        bank, count = self.instance_bank, self.config.num_layers
        features, anchors = bank.start(len(views.stamps))
        recalled = None if past is None else bank.recall(past, views.reference2global, views.stamps)
        remembered: Others | None = None
        if recalled is not None:
            embeds = self.anchor_encoder(recalled.anchors)
            remembered = Others(recalled.features, embeds, self._values(recalled.features))
        intervals = anchors.new_full(anchors.shape[:1], bank.interval) if recalled is None else recalled.intervals
        blocked = None
        if denoising is not None:
            blank = features.new_zeros(*denoising.anchors.shape[:2], features.shape[-1])
            features, anchors = torch.cat([features, blank], dim=1), torch.cat([anchors, denoising.anchors], dim=1)
            blocked = denoising.blocked
        embeds = self.anchor_encoder(anchors)
        stages: list[Stage] = []
        for index in range(count):
            *attentions, aggregation, feed_forward, norm, refinement = self._stage(index)
            if attentions:
                features = self._attend(attentions, features, embeds, remembered, blocked)
            features = norm(feed_forward(aggregation(views, features, anchors, embeds)))
            classify = self.training or index in (0, count - 1)
            stages.append(refinement(features, anchors, embeds, intervals, classify))
            anchors = stages[-1].boxes
            if index == 0:
                features, anchors = self._join(features, stages[0], recalled, denoising)
            if index < count - 1:
                embeds = self.anchor_encoder(anchors)
            if index > 0 and remembered is not None:
                remembered = replace(remembered, embeds=embeds[:, : bank.num_temporal])
        output = _output(stages, features, denoising)
        return self._remember(output, views, past, recalled)

    def _stage(self, index: int) -> nn.ModuleList:
        """Return the layers of a stage; the first one has four, the others three more."""
        start = 0 if index == 0 else 4 + 7 * (index - 1)
        return self.layers[start : 4 + 7 * index]

    def _values(self, features: Tensor) -> Tensor:
        """Return the values of attention to instances with features [B, n, C]."""
        return self.fc_before(features) if self.config.decoupled_attention else features

    def _attend(
        self,
        layers: Sequence[nn.Module],
        features: Tensor,
        embeds: Tensor,
        remembered: Others | None,
        blocked: Tensor | None,
    ) -> Tensor:
        """Return the features [B, n, C] after attention to the remembered instances and among themselves, with norm.

        remembered: the past frame's instances; without them, instances attend to each other instead
        """
        to_past, among, norm = layers
        if remembered is not None:
            features = self._attend_once(to_past, features, embeds, remembered, None)
        else:
            # the decoupled attention was trained, where there is no past frame, with the queries themselves as values
            decoupled = self.config.decoupled_attention
            values = torch.cat([features, embeds], dim=-1) if decoupled else features
            features = self._attend_once(to_past, features, embeds, Others(features, embeds, values), blocked)
        own = Others(features, embeds, self._values(features))
        normed: Tensor = norm(self._attend_once(among, features, embeds, own, blocked))
        return normed

    def _attend_once(
        self, layer: nn.Module, features: Tensor, embeds: Tensor, others: Others, blocked: Tensor | None
    ) -> Tensor:
        """Return the features [B, n, C] after attention to others."""
        if not self.config.decoupled_attention:
            query, key = features + embeds, others.features + others.embeds
            attended: Tensor = layer(features, query, key, others.values, blocked)
            return attended
        query, key = torch.cat([features, embeds], dim=-1), torch.cat([others.features, others.embeds], dim=-1)
        attended = self.fc_after(layer(query, query, key, others.values, blocked))
        return attended

    def _join(
        self, features: Tensor, stage: Stage, recalled: Recalled | None, denoising: DenoisingInstances | None
    ) -> tuple[Tensor, Tensor]:
        """Return features and anchors after the first stage, with those of the past frame among them."""
        anchors = stage.boxes
        own, count = self.config.num_anchor, anchors.shape[1]
        if recalled is not None:
            assert stage.logits is not None  # the first stage always classifies
            joined = self.instance_bank.merge(recalled, features[:, :own], anchors[:, :own], stage.logits[:, :own])
            if count == own:
                return joined
            features, anchors = (
                torch.cat([new, old[:, own:]], dim=1) for new, old in zip(joined, (features, anchors), strict=True)
            )
        if denoising is None or denoising.recalled is None:
            return features, anchors
        assert denoising.recalled_features is not None and denoising.recalled_anchors is not None
        taken = denoising.recalled[..., None]
        return (
            torch.cat([features[:, :own], torch.where(taken, denoising.recalled_features, features[:, own:])], dim=1),
            torch.cat([anchors[:, :own], torch.where(taken, denoising.recalled_anchors, anchors[:, own:])], dim=1),
        )

    def _remember(
        self, output: Sparse4DOutput, views: Views, past: Instances | None, recalled: Recalled | None
    ) -> Sparse4DOutput:
        """Return the output with the instances that the next frame continues from."""
        last = output.last
        assert last.logits is not None  # the last stage always classifies
        chosen, confidences = self.instance_bank.select(last.logits, None if past is None else past.confidences)
        features, anchors = (take_rows(values.detach(), chosen) for values in (output.features, last.boxes))
        instances = Instances(features, anchors, confidences, views.reference2global, views.stamps)
        valid = None if recalled is None else recalled.valid
        return replace(output, instances=instances, chosen=chosen, valid=valid)


def _output(stages: Sequence[Stage], features: Tensor, denoising: DenoisingInstances | None = None) -> Sparse4DOutput:
    """Return the output of the stages; what belongs to denoising instances, which come last, is split off."""
    extra = 0 if denoising is None else denoising.anchors.shape[1]
    own = features.shape[1] - extra
    last = stages[-1]
    assert last.logits is not None  # the last stage always classifies
    return Sparse4DOutput(
        stages=tuple(_rows(stage, slice(0, own)) for stage in stages),
        denoising=tuple(_rows(stage, slice(own, None)) for stage in stages) if extra else (),
        features=features[:, :own],
        denoising_features=features[:, own:] if extra else None,
        instances=None,
        chosen=None,
        valid=None,
        finite=all_finite([last.boxes.detach(), last.logits.detach(), features.detach()]),
    )


def _rows(stage: Stage, rows: slice) -> Stage:
    parts = (stage.boxes, stage.logits, stage.quality)
    return Stage(*(None if part is None else part[:, rows] for part in parts))  # type: ignore[arg-type]
