"""SparseBEV (Liu et al., ICCV 2023): sparse queries that sample the camera images of several frames.

A backbone and a feature pyramid encode every image once. A single decoder layer refines learnt boxes six times; each
time it samples the current and the remembered features at points in and around the boxes. There is no dense grid, no
depth estimation and no non-maximum suppression.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from bev_perception.config import VariantConfig
from bev_perception.families.sparsebev.config import DecodeConfig, SparseBEVHeadConfig
from bev_perception.families.sparsebev.decode import decode_boxes
from bev_perception.families.sparsebev.proposals.motion import follow, max_speeds
from bev_perception.families.sparsebev.proposals.perspective import (
    PerspectiveHead,
    PerspectiveOutput,
    invert_cameras,
    lift,
)
from bev_perception.models.encoder import CameraModel, check_settings, image_size_of, levels_by_frame
from bev_perception.models.memory import FrameFeatures
from bev_perception.models.protocol import Encoded, Perception, all_finite
from bev_perception.models.query_layers import (
    AdaptiveMixing,
    FeedForward,
    PositionEncoding,
    SamplingPoints,
    ScaleAdaptiveSelfAttention,
    decode_centers,
    encode_centers,
    inverse_sigmoid,
)
from bev_perception.ops.sampling import LevelsByFrame, sample_features
from bev_perception.types import Limits, ModelInput

#: weights of the ten box codes in the training loss; the official checkpoints contain them
CODE_WEIGHTS = (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)

#: m/s; velocities are encoded in this unit
SPEED_UNIT = 5.0


@dataclass(frozen=True)
class SparseBEVOutput:
    """The decoder's predictions after each layer, in order.

    logits: [layers, B, Q, num_classes]
    boxes: [layers, B, Q, 10]: cx, cy (m), log d0, log d1, cz (m), log d2, sin yaw, cos yaw, vx, vy (m/s), in the
        model's reference frame
    finite: [] bool, whether everything computed is finite; logits and boxes have zeros in place of NaN
    seen: output of the perspective head for the current images; None if it was not run
    """

    logits: Tensor
    boxes: Tensor
    finite: Tensor
    seen: PerspectiveOutput | None = None


@dataclass(frozen=True)
class LookedFeatures(FrameFeatures):
    """What a variant with a perspective head remembers of a frame.

    looked: [N, h, w, 2 C], see PerspectiveHead.look
    """

    looked: Tensor

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The levels, and what the head has made of them."""
        return (*self.levels, self.looked)


@dataclass(frozen=True)
class DenoisingQueries:
    """Queries that training adds before the learnt ones: P noisy copies of known boxes.

    boxes: [B, P, 10], see query_layers
    labels: [B, P] int64 class, -1 for an unused place
    blocked: [P + Q, P + Q] bool, see ScaleAdaptiveSelfAttention
    """

    boxes: Tensor
    labels: Tensor
    blocked: Tensor


@dataclass(frozen=True)
class ProposedQueries:
    """Queries that start at objects which the perspective head has detected.

    boxes: [B, K, 10], see query_layers
    labels: [B, K] int64 class
    """

    boxes: Tensor
    labels: Tensor


class SparseBEVDecoderLayer(nn.Module):
    """One refinement of all queries; all passes share its weights."""

    def __init__(self, head: SparseBEVHeadConfig, num_classes: int, frames: int) -> None:
        """Build the layer for `frames` frames, including the current one."""
        super().__init__()
        dims = head.embed_dims
        self.pc_range = head.pc_range
        self.correct_velocity = head.proposals.correct_velocity
        self.position_encoder = PositionEncoding(dims)
        if self.correct_velocity:
            self.velocity_encoder = nn.Linear(2, dims)
            nn.init.zeros_(self.velocity_encoder.weight)
            nn.init.zeros_(self.velocity_encoder.bias)
        self.self_attn = ScaleAdaptiveSelfAttention(dims, head.num_heads, head.dropout)
        self.sampling = SamplingPoints(dims, head.num_groups, head.num_points, head.num_levels, head.pc_range)
        self.mixing = AdaptiveMixing(dims, head.num_groups, frames * head.num_points, head.mixing_out_points)
        self.ffn = FeedForward(dims, head.ffn_dim, head.dropout)
        self.norm1 = nn.LayerNorm(dims)
        self.norm2 = nn.LayerNorm(dims)
        self.norm3 = nn.LayerNorm(dims)
        self.cls_branch = nn.Sequential(
            nn.Linear(dims, dims),
            nn.LayerNorm(dims),
            nn.ReLU(inplace=True),
            nn.Linear(dims, dims),
            nn.LayerNorm(dims),
            nn.ReLU(inplace=True),
            final := nn.Linear(dims, num_classes),
        )
        nn.init.constant_(final.bias, -math.log(99))  # every class starts at a probability of 1 %
        self.reg_branch = nn.Sequential(
            nn.Linear(dims, dims),
            nn.ReLU(inplace=True),
            nn.Linear(dims, dims),
            nn.ReLU(inplace=True),
            nn.Linear(dims, head.code_size),
        )

    def forward(
        self,
        boxes: Tensor,
        features: Tensor,
        levels_by_frame: LevelsByFrame,
        reference2image: Tensor,
        time_differences: Tensor,
        image_size: tuple[int, int],
        legacy: bool,
        blocked: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return refined boxes [B, Q, 10], features [B, Q, C] and logits [B, Q, classes]; see SparseBEVHead."""
        features = features + self.position_encoder(boxes[..., :3])
        if self.correct_velocity:
            features = features + self.velocity_encoder(boxes[..., 8:] / SPEED_UNIT)
        features = self.norm1(self.self_attn(features, decode_centers(boxes[..., :3], self.pc_range), blocked))
        points, level_weights = self.sampling(features, boxes, time_differences, legacy)
        sampled = sample_features(levels_by_frame, points, reference2image, level_weights, image_size)
        features = self.norm2(self.mixing(sampled, features))
        features = self.norm3(self.ffn(features))
        refined = self._refine(boxes, self.reg_branch(features), time_differences)
        return refined, features, self.cls_branch(features)

    def _refine(self, boxes: Tensor, regression: Tensor, time_differences: Tensor) -> Tensor:
        """Return refined boxes: centres are corrected in logit space, the other codes are replaced.

        The velocity is regressed as a displacement over the time since frame 1; with ProposalsConfig.correct_velocity
        that is a correction, which is added to the velocity before.
        """
        centers = (regression[..., :3] + inverse_sigmoid(boxes[..., :3])).sigmoid()
        velocities = regression[..., 8:]
        if time_differences.shape[1] > 1:
            since = time_differences[:, 1, None, None]  # [B, 1, 1]; 0 without history, negative for a future frame
            velocities = velocities / torch.where(since < 1e-5, torch.ones_like(since), since)
        if self.correct_velocity:
            velocities = boxes[..., 8:] + velocities
        return torch.cat([centers, regression[..., 3:8], velocities], dim=-1)


class SparseBEVHead(nn.Module):
    """The learnt queries and their decoder."""

    code_weights: Tensor

    def __init__(self, head: SparseBEVHeadConfig, num_classes: int, frames: int) -> None:
        """Build the head."""
        super().__init__()
        self.num_layers = head.num_layers
        self.pc_range = head.pc_range
        self.register_buffer("code_weights", torch.tensor(CODE_WEIGHTS))
        self.init_query_bbox = nn.Embedding(head.num_query, head.code_size)
        self.label_enc = nn.Embedding(num_classes + 1, head.embed_dims - 1)  # the last row: class unknown
        layer = SparseBEVDecoderLayer(head, num_classes, frames)
        # names as in the official checkpoints: transformer.decoder.decoder_layer
        self.transformer = nn.ModuleDict({"decoder": nn.ModuleDict({"decoder_layer": layer})})
        self._spread_queries(head.num_query)

    @torch.no_grad()
    def _spread_queries(self, num_query: int) -> None:
        """Initialise the boxes on a square grid over the range, at its lower end in z, with zero velocity."""
        side = math.isqrt(num_query)
        index = torch.arange(num_query)
        boxes = self.init_query_bbox.weight
        boxes[:, 0] = (index // side + 0.5) / side
        boxes[:, 1] = (index % side + 0.5) / side
        boxes[:, 2] = 0.0
        boxes[:, 5] = 1.5
        boxes[:, 8:] = 0.0

    @property
    def decoder_layer(self) -> nn.Module:
        """The single layer that all passes share."""
        decoder: nn.ModuleDict = self.transformer["decoder"]  # type: ignore[assignment]
        return decoder["decoder_layer"]

    def forward(
        self,
        levels_by_frame: LevelsByFrame,
        reference2image: Tensor,
        time_differences: Tensor,
        image_size: tuple[int, int],
        legacy: bool,
        denoising: DenoisingQueries | None = None,
        proposed: ProposedQueries | None = None,
    ) -> SparseBEVOutput:
        """Refine the queries in all passes.

        legacy: see SamplingPoints
        denoising: queries before the learnt ones
        proposed: queries after the learnt ones

        Other arguments are as in SparseBEV.detect.
        """
        batch = len(reference2image)
        boxes = self.init_query_bbox.weight.expand(batch, -1, -1)  # [B, Q, 10]
        unknown = self.label_enc.weight[-1]
        features = torch.cat([unknown, unknown.new_zeros(1)]).expand(*boxes.shape[:2], -1)  # 0: not a denoising query
        blocked = None
        if proposed is not None:
            boxes = torch.cat([boxes, proposed.boxes], dim=1)
            classes = self.label_enc(proposed.labels)
            features = torch.cat([features, torch.cat([classes, torch.zeros_like(classes[..., :1])], dim=-1)], dim=1)
        if denoising is not None:
            boxes = torch.cat([denoising.boxes, boxes], dim=1)
            features = torch.cat([self._label_features(denoising.labels), features], dim=1)
            blocked = denoising.blocked
        all_boxes, all_logits = [], []
        for _ in range(self.num_layers):
            boxes, features, logits = self.decoder_layer(
                boxes, features, levels_by_frame, reference2image, time_differences, image_size, legacy, blocked
            )
            all_boxes.append(boxes)
            all_logits.append(logits)
            boxes = boxes.detach()
        logits, boxes = torch.stack(all_logits), torch.stack(all_boxes)
        finite = all_finite([logits.detach(), boxes.detach()])
        return SparseBEVOutput(logits.nan_to_num(), self._to_metres(boxes.nan_to_num()), finite)

    def _label_features(self, labels: Tensor) -> Tensor:
        """Return the features [B, P, C] of labels [B, P]: the class and a 1 for "denoising"; all 0 for label -1."""
        known = (labels >= 0)[..., None]
        classes = self.label_enc(labels.clamp(min=0))
        return torch.cat([classes, torch.ones_like(classes[..., :1])], dim=-1) * known

    def _to_metres(self, boxes: Tensor) -> Tensor:
        centers = decode_centers(boxes[..., :3], self.pc_range)
        return torch.cat(
            [centers[..., :2], boxes[..., 3:5], centers[..., 2:], boxes[..., 5:]], dim=-1
        )  # the order of the targets: x, y, d0, d1, z, d2, sin, cos, vx, vy


class SparseBEV(CameraModel[SparseBEVOutput]):
    """The detector: boxes from images and memory.

    legacy_boxes: whether the weights come from a checkpoint of version "v0.17.1", whose boxes rotate in the opposite
        direction; load_checkpoint sets it, sampling and decode_boxes use it
    """

    max_speeds: Tensor

    def __init__(self, config: VariantConfig) -> None:
        """Build the model with fresh weights; raise ConfigError for settings that do not fit together."""
        check_settings(config)
        super().__init__(config)
        self.legacy_boxes = False
        frames = 1 + config.frames.past + config.frames.future
        self.pts_bbox_head = SparseBEVHead(config.head, len(config.class_names), frames)
        self.perspective_head: PerspectiveHead | None = None
        if config.head.proposals.perspective:
            ground = -config.reference_frame.translation[2]
            self.perspective_head = PerspectiveHead(config.neck.out_channels, len(config.class_names), ground)
            if not config.head.proposals.queries:
                self.training_only = ("perspective_head",)
        self.register_buffer("max_speeds", max_speeds(config.class_names), persistent=False)

    def detect(
        self,
        levels_by_frame: LevelsByFrame,
        reference2image: Tensor,
        time_differences: Tensor,
        image_size: tuple[int, int],
        denoising: DenoisingQueries | None = None,
        looked_by_frame: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> SparseBEVOutput:
        """Detect boxes in encoded frames, the current one first.

        levels_by_frame: T x L maps [B, N, h, w, C], from `encode`
        reference2image: [B, T, N, 4, 4], reference frame (m) to depth-scaled pixels of each image; zeros for a missing
            camera
        time_differences: [B, T], s, current minus frame t
        image_size: (height, width) of the encoded images including padding, pixels
        denoising: P further queries for training
        looked_by_frame: of each of T frames what PerspectiveHead.look has made of it, [B, N, h, w, 2 C], and its
            image2reference, [B, N, 4, 4], see invert_cameras; None: neither is there yet

        In the outputs, denoising queries come before the learnt ones and proposed queries after them.
        """
        seen, proposed = None, None
        finite: list[Tensor] = []
        count = self.config.head.proposals.queries
        if self.perspective_head is not None and (self.training or count):
            see = functools.partial(self._see, levels_by_frame, reference2image, image_size, looked_by_frame)
            seen, image2reference = see(0)
            finite += [seen.heat, seen.codes]
            if count:
                boxes, labels = lift(seen, image2reference, image_size, count)
                with torch.no_grad():
                    others = [lift(*see(t), image_size, count) for t in range(1, len(levels_by_frame))]
                    velocities = follow(boxes, labels, others, time_differences[:, 1:], self.max_speeds)
                proposed = self._propose(boxes, labels, velocities)
                finite += [boxes, velocities]
        output: SparseBEVOutput = self.pts_bbox_head(
            levels_by_frame, reference2image, time_differences, image_size, self.legacy_boxes, denoising, proposed
        )
        if finite:
            output = replace(output, finite=output.finite & all_finite(x.detach() for x in finite))
        return replace(output, seen=seen)

    def _see(
        self,
        levels_by_frame: LevelsByFrame,
        reference2image: Tensor,
        image_size: tuple[int, int],
        looked_by_frame: Sequence[tuple[Tensor, Tensor]] | None,
        t: int,
    ) -> tuple[PerspectiveOutput, Tensor]:
        """Return the perspective head's output for frame t, and its image2reference; arguments as in `detect`."""
        assert self.perspective_head is not None
        if looked_by_frame is None:
            back = invert_cameras(reference2image[:, t])
            return self.perspective_head(levels_by_frame[t][0], back, image_size), back
        looked, back = looked_by_frame[t]
        return self.perspective_head.predict(looked, back, image_size), back

    def _propose(self, boxes: Tensor, labels: Tensor, velocities: Tensor) -> ProposedQueries:
        """Return queries for lifted boxes [B, K, 8] with velocities [B, K, 2]."""
        relative = encode_centers(boxes[..., :3], self.config.head.pc_range).clamp(0, 1)
        return ProposedQueries(torch.cat([relative, boxes[..., 3:], velocities], dim=-1), labels)

    def remember(self, encoded: Encoded, history: Sequence[FrameFeatures | None], inputs: ModelInput) -> FrameFeatures:
        """Return the memory entry of a frame, with what the perspective head makes of its images alone."""
        entry = super().remember(encoded, history, inputs)
        if self.perspective_head is None or not self.config.head.proposals.queries:
            return entry
        return LookedFeatures(**vars(entry), looked=self.perspective_head.look(entry.levels[0]))

    def look(self, frames: Sequence[FrameFeatures], current: ModelInput) -> SparseBEVOutput:
        """Return the boxes for encoded frames, the first of which is `current`; the batch is 1."""
        return self._step(self.step_inputs(frames, current.reference2global), image_size_of(current))

    def step_inputs(self, frames: Sequence[FrameFeatures], reference2global: np.ndarray) -> dict[str, Tensor]:
        """Return what a step takes, by name: besides levels and matrices, the frames' times and what the head saw."""
        named = super().step_inputs(frames, reference2global)
        matrices = named["reference2image"]
        named["time_differences"] = torch.from_numpy(time_differences(frames)).to(matrices)
        for t, frame in enumerate(frames):
            if isinstance(frame, LookedFeatures):
                named[f"frame{t}_looked"] = frame.looked
        if self.perspective_head is not None and self.config.head.proposals.queries:
            named["image2reference"] = invert_cameras(matrices)
        return named

    def step(self, named: Mapping[str, Tensor], image_size: tuple[int, int]) -> dict[str, Tensor]:
        """Return "logits" [Q, classes] and "boxes" [Q, 10] of the last layer; see CameraModel and SparseBEVOutput."""
        output = self._step(named, image_size)
        return {"logits": output.logits[-1, 0], "boxes": output.boxes[-1, 0]}

    def _step(self, named: Mapping[str, Tensor], image_size: tuple[int, int]) -> SparseBEVOutput:
        levels = levels_by_frame(named)
        looked = None
        if "image2reference" in named:
            back = named["image2reference"][None].unbind(dim=1)
            looked = [(self._looked(named, t)[None], back[t]) for t in range(len(levels))]
        matrices, times = named["reference2image"][None], named["time_differences"][None]
        return self.detect(levels, matrices, times, image_size, looked_by_frame=looked)

    def _looked(self, named: Mapping[str, Tensor], t: int) -> Tensor:
        """Return what the perspective head makes of frame t; made here if it was not remembered, as in exports."""
        assert self.perspective_head is not None
        found = named.get(f"frame{t}_looked")
        return self.perspective_head.look(named[f"frame{t}_level0"]) if found is None else found

    def decode(self, outputs: SparseBEVOutput, limits: Limits) -> Perception:
        """Return the boxes of the last layer, in the reference frame.

        Raises NotFiniteError for outputs that hold NaN or infinity, or that were computed from such features.
        """
        own: DecodeConfig = self.config.head.decode
        config = replace(
            own,
            score_threshold=own.score_threshold if limits.score is None else limits.score,
            max_num=own.max_num if limits.count is None else limits.count,
        )
        boxes = decode_boxes(
            *(outputs.logits[-1, 0], outputs.boxes[-1, 0], outputs.finite, config),
            *(self.config.class_names, self.legacy_boxes),
        )
        return Perception(boxes=boxes)


def time_differences(frames: Sequence[FrameFeatures]) -> np.ndarray:
    """Return how much older each frame is than the first, [T] float64, s, averaged over the cameras that both have.

    The integer stamps are subtracted before conversion to float. Without a common camera, the stamps of the frames are
    used.
    """
    current = frames[0]
    differences = np.zeros(len(frames))
    for t, frame in enumerate(frames):
        both = current.present & frame.present
        ages = (current.stamps - frame.stamps)[both] if both.any() else np.array([current.stamp - frame.stamp])
        differences[t] = ages.astype(np.float64).mean() / 1e9
    return differences
