"""Sparse4D (Lin et al., 2022 and 2023): sparse instances that sample the images and live from frame to frame.

An instance is a feature and a box. Each decoder stage samples the images at key points of the boxes and refines them.
Version 1 samples remembered feature maps of past frames too. Versions 2 and 3 continue from the best instances of the
past frame instead, so that their cost does not grow with the length of the history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bev_perception.config import ConfigError, VariantConfig
from bev_perception.families.sparse4d.anchors import CENTER, VELOCITY
from bev_perception.families.sparse4d.config import DecodeConfig, Sparse4DHeadConfig
from bev_perception.families.sparse4d.decode import best_class, decode_boxes
from bev_perception.families.sparse4d.depth import DepthBranch
from bev_perception.families.sparse4d.head import MapsHead, RecurrentHead
from bev_perception.families.sparse4d.identities import Identities, Sightings
from bev_perception.families.sparse4d.instances import Instances
from bev_perception.families.sparse4d.outputs import DenoisingInstances, Sparse4DOutput
from bev_perception.families.sparse4d.views import Views
from bev_perception.models.encoder import CameraModel, check_settings
from bev_perception.models.memory import FrameFeatures, Memory
from bev_perception.models.protocol import Encoded, Perception, Prediction
from bev_perception.types import NO_TRACK, Limits, ModelInput

#: how old a past frame must be, as a share of the trained interval, for its instances to go on; only the first frames
#: of a drive find none. A shorter step would blow up the velocities, which are corrected by a displacement over it
SHORTEST_STEP = 0.45
#: what names of weights contain, in the order of asking -> the version of the method that has them
_MARKS = (
    ("head.fc_before.", "version 3 (sparse4dv3_...)"),
    (".camera_encoder.", "version 2 (sparse4dv2_...)"),
    (".temp_module.", "version 1 with past frames (sparse4dv1_..._h4)"),
    ("head.depth_module.", "version 1 without past frames (sparse4dv1_..._h1)"),
)


@dataclass(frozen=True)
class SituatedFeatures(FrameFeatures):
    """The feature pyramid of one frame, and where the vehicle was: the memory entry of version 1.

    reference2global: [4, 4] float64, the reference frame at `stamp` to the global frame
    """

    reference2global: np.ndarray


class Sparse4D(CameraModel[Sparse4DOutput]):
    """The detector. Submodules: img_backbone, img_neck, head (instance_bank, anchor_encoder, layers), depth_branch."""

    head: MapsHead | RecurrentHead

    def __init__(self, config: VariantConfig) -> None:
        """Build the model with fresh weights; raise ConfigError for settings that do not fit together."""
        head: Sparse4DHeadConfig = config.head
        frames, classes = config.frames, len(config.class_names)
        width = head.embed_dims * (2 if head.decoupled_attention else 1)
        past_is_one = not head.recurrent or frames.past == 1
        rules = [
            (
                width % head.num_heads == 0,
                f"head.num_heads ({head.num_heads}) must divide the attention's width {width}",
            ),
            (not head.recurrent or head.num_layers > 1, f"head.num_layers ({head.num_layers}) must be 2 at least"),
            (past_is_one, f"frames.past ({frames.past}) must be 1, the frame whose instances go on"),
            (frames.future == 0, f"frames.future ({frames.future}) must be 0"),
            (not head.recurrent or frames.missing == "oldest", "frames.missing must be 'oldest'"),
        ]
        check_settings(config, rules)
        super().__init__(config)
        if head.recurrent:
            self.head = RecurrentHead(head, classes, frames.interval, frames.max_gap)
        else:
            self.head = MapsHead(head, classes, frames.interval, frames.past)
        decoder = {f"stage {k}": [f"head.{name}" for name in names] for k, names in enumerate(self.head.stages())}
        self.stages = {**self.stages, **decoder}
        if head.recurrent and head.depth_levels:
            self.depth_branch = DepthBranch(head.embed_dims, head.depth_levels)
            self.training_only = ("depth_branch",)

    def detect(
        self,
        frames: Sequence[Views],
        past: Instances | None = None,
        denoising: DenoisingInstances | None = None,
    ) -> Sparse4DOutput:
        """Detect boxes in a batch of encoded frames; differentiable, in training mode every stage predicts all.

        frames: the current frame; with "maps" then the past ones, newest first (none at first)
        past: with "instances": `instances` of the output for the frame before; None at first
        denoising: D further instances for training
        """
        if isinstance(self.head, MapsHead):
            output: Sparse4DOutput = self.head(frames)
        else:
            output = self.head(frames[0], past, denoising)
        return output

    def encode(self, inputs: ModelInput) -> Encoded:
        """Return "levels" and "finite", see CameraModel; raise ConfigError for a number of cameras that cannot be."""
        head: Sparse4DHeadConfig = self.config.head
        if not head.recurrent and len(inputs.present) != head.cameras:
            raise ConfigError(
                f"{self.config.name}: its weights are tied to {head.cameras} cameras, and there are "
                f"{len(inputs.present)}; run it with {head.cameras} (missing ones may be left out frame by frame), or "
                "choose a variant that encodes its cameras' matrices (head.temporal 'instances')"
            )
        return super().encode(inputs)

    def predict(
        self, encoded: Encoded, history: Sequence[Any | None], inputs: ModelInput, carried: Any
    ) -> Prediction[Sparse4DOutput, Any]:
        """Return the prediction for one frame; with "instances", `carried` are the Identities."""
        if not self.config.head.recurrent:
            return super().predict(encoded, history, inputs, carried)
        past: Instances | None = history[0] if history else None
        identities: Identities = Identities() if carried is None else carried
        if past is None:  # the memory has been wiped, or there has been none
            identities = identities.forgotten()
        elif not self._shortest_step <= (inputs.stamp - past.stamp) / 1e9 <= self.config.frames.max_gap:
            past = None
        outputs = self.detect([self._views(self._features(encoded, inputs), inputs)], past)
        if self.config.head.track_ids:
            name = self._name if self.for_benchmark else self._identify
            outputs, identities = name(outputs, past, identities)
        assert outputs.instances is not None  # the head remembers instances
        outputs = replace(outputs, finite=outputs.finite & encoded["finite"][0])
        return Prediction(outputs, outputs.instances, identities)

    def look(self, frames: Sequence[FrameFeatures], current: ModelInput) -> Sparse4DOutput:
        """Return the boxes for encoded frames, the first of which is `current`; the batch is 1."""
        distinct = {frame.stamp: frame for frame in frames}  # where the memory does not reach, frames are repeated
        return self.detect([self._views(frame, current) for frame in distinct.values()])

    def remember(self, encoded: Encoded, history: Sequence[Any | None], inputs: ModelInput) -> Any:
        """Return the memory entry of a frame: its pyramid with "maps", its best instances else."""
        if self.config.head.recurrent:
            return self.predict(encoded, history, inputs, None).entry
        return self._features(encoded, inputs)

    def new_memory(self, interval: float) -> Memory[Any]:
        """Return an empty memory; with "instances", entries that are old enough to go on come first."""
        memory: Memory[Any] = super().new_memory(interval)
        return replace(memory, shortest=self._shortest_step) if self.config.head.recurrent else memory

    def decode(self, outputs: Sparse4DOutput, limits: Limits) -> Perception:
        """Return the boxes of the last stage, in the reference frame.

        Raises NotFiniteError for outputs that hold NaN or infinity, or that were computed from such features.
        """
        own: DecodeConfig = self.config.head.decode
        config = replace(own, max_num=own.max_num if limits.count is None else limits.count)
        decoded = decode_boxes(outputs, config, self.config.class_names, self.config.head.track_ids)
        boxes = decoded.tracked(own.track_threshold) if self.for_benchmark else decoded.boxes
        return Perception(boxes=boxes if limits.score is None else boxes.select(boxes.scores >= limits.score))

    def explain_weights(self, state: Mapping[str, Tensor]) -> list[str]:
        """Return which version of Sparse4D a checkpoint looks like, a line; none if it looks like none."""
        found = next((version for mark, version in _MARKS if any(mark in name for name in state)), None)
        return [] if found is None else [f"by its names it is a checkpoint of Sparse4D {found}"]

    def depths(self, levels: Sequence[Tensor], focal: Tensor) -> list[Tensor]:
        """Return the depths [B, V, h, w], m, of the first head.depth_levels levels [B, V, h, w, C].

        focal: [B, V], pixels, of the resized images
        """
        found: list[Tensor] = self.depth_branch(levels, focal)
        return found

    @property
    def _shortest_step(self) -> float:
        """The least age of a past frame whose instances go on, s."""
        return SHORTEST_STEP * self.config.frames.interval

    def _features(self, encoded: Encoded, inputs: ModelInput) -> SituatedFeatures:
        shown = (encoded["levels"], inputs.global2image, inputs.present, inputs.stamps, inputs.stamp)
        return SituatedFeatures(*shown, inputs.reference2global)

    def _views(self, frame: Any, current: ModelInput) -> Views:
        """Return an encoded frame as a batch of 1, with images of the size of the current ones."""
        anchor = self.head.instance_bank.anchor
        matrices = frame.global2image @ frame.reference2global
        return Views(
            *([level[None] for level in frame.levels], torch.from_numpy(matrices[None]).to(anchor)),
            (current.images.shape[-2], current.images.shape[-1]),
            torch.from_numpy(frame.present[None]).to(anchor.device),
            *(frame.reference2global[None], np.array([frame.stamp])),
        )

    def _name(
        self, outputs: Sparse4DOutput, past: Instances | None, identities: Identities
    ) -> tuple[Sparse4DOutput, Identities]:
        """Return the outputs with ids by the published rule, and the state after the frame."""
        assert outputs.last.logits is not None  # the last stage always classifies
        scores = best_class(outputs.last.logits)[0].cpu().numpy()
        ids, next_id = identities.name(handed_down(past, outputs), scores, self.config.head.decode.score_threshold)
        return with_ids(outputs, ids), Identities(next_id)

    def _identify(
        self, outputs: Sparse4DOutput, past: Instances | None, identities: Identities
    ) -> tuple[Sparse4DOutput, Identities]:
        """Return the outputs with ids for live use, and the state after the frame; the batch is 1."""
        assert outputs.instances is not None and outputs.chosen is not None
        last = outputs.last
        assert last.logits is not None  # the last stage always classifies
        scores, labels = best_class(last.logits[0])
        columns = (x[:, None].to(last.boxes.dtype) for x in (scores, labels))
        values = torch.cat([*columns, last.boxes[0]], dim=1).double().cpu().numpy()  # [N, 13]
        anchors, reference2global = values[:, 2:], outputs.instances.reference2global[0]
        seen = Sightings(
            labels=values[:, 1].astype(np.int64),
            centers=(anchors[:, CENTER] @ reference2global[:3, :3].T + reference2global[:3, 3])[:, :2],
            velocities=(anchors[:, VELOCITY] @ reference2global[:3, :3].T)[:, :2],
            stamps=np.full(len(values), outputs.instances.stamp),
        )
        handed = handed_down(past, outputs)[0]
        threshold = self.config.head.decode.track_threshold
        ids, identities = identities.identify(handed, values[:, 0], seen, threshold)
        shown = np.where(values[:, 0] >= threshold, ids, NO_TRACK)  # the instances keep what is not shown
        return replace(with_ids(outputs, ids[None]), ids=shown[None]), identities


def handed_down(past: Instances | None, outputs: Sparse4DOutput) -> np.ndarray:
    """Return the ids [B, N] that a frame's instances have from those of the past frame; -1 for new ones."""
    ids = np.full(outputs.last.boxes.shape[:2], -1)
    if past is not None and past.ids is not None and outputs.valid is not None:
        valid = outputs.valid.cpu().numpy()
        ids[valid, : past.ids.shape[1]] = past.ids[valid]
    return ids


def with_ids(outputs: Sparse4DOutput, ids: np.ndarray) -> Sparse4DOutput:
    """Return the outputs with ids [B, N], which the instances that go on keep."""
    assert outputs.instances is not None and outputs.chosen is not None
    kept = np.take_along_axis(ids, outputs.chosen.cpu().numpy(), axis=1)
    return replace(outputs, ids=ids, instances=replace(outputs.instances, ids=kept))
