"""BEVDet and its successors: images are lifted into a grid of the ego frame, where boxes or occupancy are found.

BEVDet (Huang et al., 2021), BEVDet4D (Huang and Huang, 2022), BEVDepth (Li et al., AAAI 2023), BEVStereo (Li et al.,
AAAI 2023), and the occupancy models made of them. Modules are named as in the official checkpoints.

A stream computes the map of one frame a step and warps the maps that it remembers into the current ego frame, each from
where its own cameras were. The ego frame is base_link at the frame's stamp. In training it was that of the exposure of
one camera, the front left one: the same where that camera is the anchor of the synchronizer, a few milliseconds of
motion apart elsewhere. `perceive` computes all frames anew, as the reference does in training and tests; there the
caller says which ego frame is meant.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bev_perception.config import ConfigError, VariantConfig
from bev_perception.families.bevdet.bev_encoder import build_bev_neck, build_pre_process, build_stages
from bev_perception.families.bevdet.centerpoint_head import CenterPointHead, TaskMaps
from bev_perception.families.bevdet.config import IN_VIEW, BEVDetHeadConfig
from bev_perception.families.bevdet.decode import decode_boxes
from bev_perception.families.bevdet.depth_net import camera_vector
from bev_perception.families.bevdet.occupancy_head import (
    build_final_conv,
    build_predictor,
    classify,
    decode_occupancy,
    voxel_grid,
)
from bev_perception.families.bevdet.stereo import StereoView, cost_volume
from bev_perception.families.bevdet.temporal import BevMemory, drop_views, join, warp
from bev_perception.families.bevdet.view_transform import ViewTransform, depth_values, sensor2grid
from bev_perception.families.bevdet.weights import explain
from bev_perception.models.backbones import build_backbone
from bev_perception.models.backbones.resnet import ResNet
from bev_perception.models.backbones.swin import SwinTransformer
from bev_perception.models.encoder import ENCODER_PARTS, ENCODER_STAGES
from bev_perception.models.memory import Memory
from bev_perception.models.necks import build_neck
from bev_perception.models.protocol import Encoded, Model, Perception, Prediction, all_finite
from bev_perception.types import Cameras, Limits, ModelInput

#: pixels of an image, along each side, for a cell of the map that is lifted
STRIDE = 16


@dataclass(frozen=True)
class BEVDetOutput:
    """What the network says of the current frame.

    tasks: of a detector, the maps of each task; empty for an occupancy model
    occupancy: [B, X, Y, Z, classes] logits of an occupancy model; None for a detector
    depth: [B, N, D, h, w], each pixel's distribution over the depths
    finite: [] bool, whether everything computed is finite
    """

    tasks: tuple[TaskMaps, ...]
    occupancy: Tensor | None
    depth: Tensor
    finite: Tensor


@dataclass(frozen=True)
class EncodedFrame:
    """One frame's encoded images, and where they are lifted to.

    features: [B, N, C, h, w]
    view: what a later frame is matched with, of a stereo variant
    cameras: each matrix [B, N, ...]
    sensor2ego: [B, N, 4, 4], optical frame to the ego frame of the map, without augmentation
    sensor2known: [B, N, 4, 4], the same of the current frame, which the depth net takes as an input for every frame
    present: [B, N] bool, False for a camera that adds nothing; None: all are there
    """

    features: Tensor
    view: StereoView | None
    cameras: Cameras
    sensor2ego: np.ndarray
    sensor2known: np.ndarray
    present: Tensor | None = None


class BEVDet(Model):
    """The network of every variant of the family."""

    encoder_parts: Sequence[str] = ENCODER_PARTS
    stages: Mapping[str, Sequence[str]] = {
        **ENCODER_STAGES,
        "depth net": ("img_view_transformer.depth_net",),
        "pre-process": ("pre_process_net",),
        "BEV backbone": ("img_bev_encoder_backbone",),
        "BEV neck": ("img_bev_encoder_neck",),
    }

    #: the published code works in the ego frame of the first exposure, and takes its boxes for those of the second
    exposures = ("cam_front_left", "cam_front")

    def __init__(self, config: VariantConfig) -> None:
        """Build the model with fresh weights; raise ConfigError for settings that do not fit together."""
        _check(config)
        super().__init__()
        self.config = config
        head: BEVDetHeadConfig = config.head
        self.head = head
        #: number of past frames whose maps are used; a stereo variant is given one more to match with
        self.past_maps = config.frames.past - head.stereo
        self.img_backbone = build_backbone(config.backbone)
        self.img_neck = build_neck(config.neck, self.img_backbone.out_channels[int(head.stereo) :])
        self.img_view_transformer = ViewTransform(head, config.neck.out_channels)
        if head.encoder.pre_blocks:
            self.pre_process_net = build_pre_process(head.encoder, head.context)
        self.img_bev_encoder_backbone = build_stages(head.encoder, (1 + self.past_maps) * head.context)
        self.img_bev_encoder_neck = build_bev_neck(head.encoder)
        if head.boxes is not None:
            self.pts_bbox_head = CenterPointHead(head.encoder.out_channels, head.boxes)
        if head.occupancy is not None:
            self.final_conv = build_final_conv(head.encoder)
            self.predicter = build_predictor(head.occupancy, head.encoder, len(config.class_names))  # their spelling

    def explain_weights(self, state: Mapping[str, Tensor]) -> list[str]:
        """Return a sentence that names what differs between this variant and the weights of another, or nothing."""
        return explain(self.state_dict(), state)

    # ---- one frame ----

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the maps [K, C, h, w] at 1/16 of the size of images [K, 3, H, W], and those for stereo at 1/4.

        images: normalised; H and W are multiples of 16
        """
        maps = self.img_backbone(self._laid_out(images))
        first = maps.pop(0) if self.head.stereo else None
        (features,) = self.img_neck(maps)
        return features, first

    def image_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the map at 1/16 of the size of images, and that at 1/4 if the variant matches frames."""
        features, first = self.encode_images(images)
        return (features,) if first is None else (features, first)

    def lift(
        self, frame: EncodedFrame, before: StereoView | None, bda: np.ndarray, image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return a frame's map before maps are joined, and its distributions over the depths [B, N, D, h, w].

        frame: its encoded images
        before: the frame before, of a stereo variant; None: there is nothing to match with
        bda: [B, 4, 4], augmentation of the ego frame
        image_size: (height, width) of the images, pixels
        """
        features = frame.features
        plan = self.img_view_transformer.plan(
            frame.cameras,
            bda[:, None] @ frame.sensor2ego,
            image_size,
            (features.shape[-2], features.shape[-1]),
            features.device,
        )
        vectors = torch.from_numpy(camera_vector(frame.cameras, frame.sensor2known, bda)).to(features)
        cost = None if frame.view is None else self._match(frame.view, before, image_size)
        bev, depth = self.img_view_transformer(features, plan, vectors, cost, frame.present)
        if self.head.encoder.pre_blocks:
            (bev,) = self.pre_process_net(bev)
        return bev, depth

    def _match(self, view: StereoView, before: StereoView | None, image_size: tuple[int, int]) -> Tensor:
        """Return the cost volume [B * N, D, H / 4, W / 4]; zeros without a frame before."""
        if before is None:
            flat = view.features.flatten(0, 1)
            return flat.new_zeros(len(flat), self.head.depth.count, *flat.shape[-2:])
        depths = depth_values(self.head.depth, view.features.device)
        return cost_volume(view, before, depths, image_size, self.head.unmatched_cost)

    def see(self, maps: Sequence[Tensor], depth: Tensor) -> BEVDetOutput:
        """Return the outputs of BEV encoder and head.

        maps: 1 + past_maps tensors [B, C, (Z,) Y, X], of all frames in the current ego frame, the current one first
        depth: distributions over the depths of the current frame, which become part of the outputs
        """
        bev = join(maps, oldest_first=self.head.stereo)
        (bev,) = self.img_bev_encoder_neck(self.img_bev_encoder_backbone(bev))
        if self.head.occupancy is not None:
            voxels = classify(bev, self.final_conv, self.predicter, self.head.occupancy)
            return BEVDetOutput((), voxels, depth, all_finite([voxels.detach(), depth.detach()]))
        tasks = self.pts_bbox_head(bev)
        outputs = [value.detach() for task in tasks for value in (task.codes, task.heatmap)]
        return BEVDetOutput(tasks, None, depth, all_finite([*outputs, depth.detach()]))

    # ---- a stream ----

    def encode(self, inputs: ModelInput) -> Encoded:
        """Return "levels", one map [N, C, h, w] in float32, "stereo", the map for matching, and "finite".

        The maps of a missing camera are those of a black image; they are left out where features are lifted.
        """
        # lifting computes in float32, whatever type autocast has used in the encoder
        features, *stereo = (level.float() for level in self.run_image_maps(inputs.images))
        levels = (features,)
        return {"levels": levels, "stereo": tuple(stereo), "finite": (all_finite([*levels, *stereo]),)}

    def remember(self, encoded: Encoded, history: Sequence[BevMemory | None], inputs: ModelInput) -> BevMemory:
        """Return the memory entry of a frame: its map, and what a later frame is matched with."""
        return self._step(encoded, history, inputs)[0]

    def predict(
        self, encoded: Encoded, history: Sequence[BevMemory | None], inputs: ModelInput, carried: Any
    ) -> Prediction[BEVDetOutput, BevMemory]:
        """Return the prediction for one frame; the current map replaces those of frames that the memory does not reach.

        history: the entries of past frames, newest first; None for such a frame
        carried: unused: all that goes on to the next frame is in the memory
        """
        entry, depth = self._step(encoded, history, inputs)
        maps = [entry.bev]
        for past in history:
            if past is None:
                maps.append(entry.bev)
                continue
            current2older = np.linalg.inv(past.ego2global) @ entry.ego2global
            maps.append(warp(past.bev, current2older[None], self.head.grid))
        outputs = self.see(maps, depth)
        return Prediction(replace(outputs, finite=outputs.finite & encoded["finite"][0]), entry)

    def _step(
        self, encoded: Encoded, history: Sequence[BevMemory | None], inputs: ModelInput
    ) -> tuple[BevMemory, Tensor]:
        """Return a frame's memory entry and its distributions over the depths.

        Without a frame before, a stereo variant matches the images with themselves, as in training.
        """
        features = encoded["levels"][0][None]
        cameras = _batched(inputs.cameras)
        present = torch.from_numpy(inputs.present)[None].to(features.device)
        view = StereoView(encoded["stereo"][0][None], cameras, present) if self.head.stereo else None
        before = history[0].view if history and history[0] is not None else view
        sensor2ego = sensor2grid(cameras, inputs.reference2global[None])
        frame = EncodedFrame(features, view, cameras, sensor2ego, sensor2ego, present)
        size = (inputs.images.shape[-2], inputs.images.shape[-1])
        bev, depth = self.lift(frame, before, np.eye(4)[None], size)
        return BevMemory(bev, inputs.reference2global, view, inputs.stamp), depth

    def new_memory(self, interval: float) -> Memory[BevMemory]:
        """Return an empty memory that reaches back to the oldest map that the variant uses."""
        spacing = self.config.frames.interval
        reach = math.ceil(self.past_maps * spacing / interval)
        thin = functools.partial(drop_views, interval=spacing) if self.head.stereo else None
        return Memory(self.past_maps, spacing, reach + 2 if self.past_maps else 0, "current", thin=thin)

    def decode(self, outputs: BEVDetOutput, limits: Limits) -> Perception:
        """Return the boxes or the occupancy in base_link.

        Raises NotFiniteError for outputs that hold NaN or infinity, or that were computed from such features.
        """
        head, names = self.head, self.config.class_names
        if outputs.occupancy is not None:
            return Perception(occupancy=decode_occupancy(outputs.occupancy, outputs.finite, voxel_grid(head), names))
        assert head.boxes is not None  # see _check
        config = head.boxes if limits.score is None else replace(head.boxes, score_threshold=limits.score)
        boxes = decode_boxes(outputs.tasks, outputs.finite, config, head.grid, names)
        count = len(boxes) if limits.count is None else min(limits.count, len(boxes))
        return Perception(boxes=boxes.select(np.arange(count)))

    # ---- a queue ----

    def perceive(
        self,
        images: Sequence[Tensor],
        cameras: Sequence[Cameras],
        ego2global: Sequence[np.ndarray],
        bda: np.ndarray | None = None,
        alignment: str | None = None,
        with_history: bool = True,
    ) -> BEVDetOutput:
        """Return the outputs for a whole queue of frames, all computed here, as in training; the newest comes first.

        images: of each frame, [B, N, 3, H, W], normalised
        cameras: of each frame, each matrix [B, N, ...]
        ego2global: of each frame, [B, 4, 4], the ego frame that its map is in
        bda: [B, 4, 4], augmentation of the ego frame; None: none
        alignment: of past frames, see BEVDetHeadConfig; None: the variant's
        with_history: False replaces the maps of past frames by zeros, as in the first epochs of training

        Past frames are computed without gradients. Their depth net is told of the current frame's camera poses.
        """
        bda = np.tile(np.eye(4), (len(images[0]), 1, 1)) if bda is None else bda
        in_view = (alignment or self.head.alignment) == IN_VIEW
        known = sensor2grid(cameras[0], ego2global[0])
        size = (images[0].shape[-2], images[0].shape[-1])
        maps: dict[int, Tensor] = {}
        frames = list(range(1 + self.past_maps if with_history else 1))
        before: StereoView | None = None
        if self.head.stereo:
            frames.reverse()  # as each frame is matched with the one before
            if with_history:
                with torch.no_grad():
                    before = self._reference(images[self.past_maps + 1], cameras[self.past_maps + 1])
        for t in frames:  # as in training: norms take up the statistics of one frame after the other
            with torch.set_grad_enabled(torch.is_grad_enabled() and t == 0):
                sensor2ego = sensor2grid(cameras[t], ego2global[0]) if in_view else known
                frame = self._frame(images[t], cameras[t], sensor2ego, known)
                maps[t], distribution = self.lift(frame, before, bda, size)
                if t == 0:
                    depth = distribution
                elif not in_view:
                    current2older = bda @ np.linalg.inv(ego2global[t]) @ ego2global[0] @ np.linalg.inv(bda)
                    maps[t] = warp(maps[t], current2older, self.head.grid)
                before = frame.view
        nothing = torch.zeros_like(maps[0])
        return self.see([maps.get(t, nothing) for t in range(1 + self.past_maps)], depth)

    def recompute(self, queue: Sequence[ModelInput]) -> BEVDetOutput:
        """Return the outputs for a queue of frames, as `perceive` does; a camera that is missing is taken as black."""
        return self.perceive(
            [inputs.images[None] for inputs in queue],
            [_batched(inputs.cameras) for inputs in queue],
            [inputs.reference2global[None] for inputs in queue],
        )

    def _frame(self, images: Tensor, cameras: Cameras, sensor2ego: np.ndarray, known: np.ndarray) -> EncodedFrame:
        features, first = self.encode_images(images.flatten(0, 1))
        features = features.unflatten(0, images.shape[:2])
        view = None if first is None else StereoView(first.unflatten(0, images.shape[:2]), cameras)
        return EncodedFrame(features, view, cameras, sensor2ego, known)

    def _reference(self, images: Tensor, cameras: Cameras) -> StereoView:
        """Return what the oldest frame is matched with: only the backbone's first stage is computed."""
        assert isinstance(self.img_backbone, ResNet | SwinTransformer)  # see _check
        first = self.img_backbone.first_map(self._laid_out(images.flatten(0, 1)))
        return StereoView(first.unflatten(0, images.shape[:2]), cameras)

    def _laid_out(self, images: Tensor) -> Tensor:
        """Return images in the memory layout that suits the encoder."""
        # batch statistics of channels-last maps are ten times less exact on CPUs
        layout = torch.contiguous_format if self.training else torch.channels_last
        return images.contiguous(memory_format=layout)


def _batched(cameras: Cameras) -> Cameras:
    """Return cameras, each matrix [N, ...], as those of a batch of one, [1, N, ...]."""
    return Cameras(*(getattr(cameras, item.name)[None] for item in fields(Cameras)))


def _check(config: VariantConfig) -> None:
    """Raise ConfigError, naming the key and the remedy, for settings that do not fit together."""
    head: BEVDetHeadConfig = config.head
    backbone, frames = config.backbone, config.frames
    rules = (
        (not config.reference_frame.is_lidar, "reference_frame.sensor must be 'base_link', the frame of the grid"),
        (frames.future == 0, f"frames.future ({frames.future}) must be 0: past frames alone are used"),
        (
            frames.past >= 2 * head.stereo,
            f"frames.past ({frames.past}) must be at least 2 with depth_net 'stereo': one map, and one to match with",
        ),
        (config.image.pad % STRIDE == 0, f"image.pad ({config.image.pad}) must be a multiple of {STRIDE}"),
        (backbone.type in ("resnet", "swin"), f"backbone.type ({backbone.type}) must be 'resnet' or 'swin'"),
        (
            backbone.first_level == 2,
            f"backbone.first_level ({backbone.first_level}) must be 2, 1/16 of its size",
        ),
        (
            backbone.with_first == head.stereo,
            "backbone.with_first must be true where head.depth_net is 'stereo', and false elsewhere",
        ),
        (config.neck.num_outs == 1, f"neck.num_outs ({config.neck.num_outs}) must be 1"),
        (
            head.encoder.volumetric or head.grid.size[2] == 1,
            f"head.grid has {head.grid.size[2]} cells over z; a bird's eye view has one: change cell or range",
        ),
        (
            head.occupancy is None or config.class_names[-1] == "free",
            f"the last of class_names ({config.class_names[-1]}) must be 'free'",
        ),
    )
    for holds, remedy in rules:
        if not holds:
            raise ConfigError(f"{config.name}: {remedy}")
    if head.boxes is not None:
        head.boxes.check_classes(config.class_names)
