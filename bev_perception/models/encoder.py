"""Base of the models with query decoders: each image is encoded once, and past frames' features are remembered."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from bev_perception.config import ConfigError, VariantConfig
from bev_perception.models.backbones import build_backbone
from bev_perception.models.memory import FrameFeatures, Memory
from bev_perception.models.necks import build_neck
from bev_perception.models.protocol import Encoded, Model, Perception, Prediction, all_finite
from bev_perception.types import Limits, ModelInput

#: outputs of a family: a frozen dataclass with a field `finite`, a bool tensor [] as in Encoded
Output = TypeVar("Output")

#: the submodules that encode images, named as in the official checkpoints
ENCODER_PARTS = ("img_backbone", "img_neck")
#: the same, as benchmarks name them
ENCODER_STAGES = {"backbone": ("img_backbone",), "neck": ("img_neck",)}


class CameraModel(Model, Generic[Output]):
    """A backbone and feature pyramid for every image, and a decoder that samples the pyramids of several frames."""

    encoder_parts: Sequence[str] = ENCODER_PARTS
    stages: Mapping[str, Sequence[str]] = ENCODER_STAGES

    def __init__(self, config: VariantConfig) -> None:
        """Build the encoder with fresh weights; raise ConfigError for settings that do not fit together."""
        super().__init__()
        self.config = config
        self.img_backbone = build_backbone(config.backbone)
        self.img_neck = build_neck(config.neck, self.img_backbone.out_channels)

    @abstractmethod
    def look(self, frames: Sequence[FrameFeatures], current: ModelInput) -> Output:
        """Return the decoder's outputs for encoded frames, the first of which is `current`; the batch is 1."""

    @abstractmethod
    def decode(self, outputs: Output, limits: Limits) -> Perception:
        """Return the outputs as boxes, occupancy or both; see Model."""

    def step_inputs(self, frames: Sequence[FrameFeatures], reference2global: np.ndarray) -> dict[str, Tensor]:
        """Return what a step takes of encoded frames, the current one first, by name.

        reference2global: [4, 4], of the current frame

        "frame{t}_level{k}": [N, h, w, C], level k of frame t
        "reference2image": [T, N, 4, 4], see reference2image
        """
        levels = {f"frame{t}_level{k}": level for t, frame in enumerate(frames) for k, level in enumerate(frame.levels)}
        matrices = torch.from_numpy(reference2image(frames, reference2global)).to(levels["frame0_level0"])
        return {**levels, "reference2image": matrices}

    def step(self, named: Mapping[str, Tensor], image_size: tuple[int, int]) -> dict[str, Tensor]:
        """Return what `decode` needs of the step's outputs, by name; a function of tensors alone, which is exported.

        named: as from step_inputs
        image_size: (height, width) of the encoded images including padding, pixels

        Raises ConfigError for families whose step is not exported.
        """
        raise ConfigError(f"the step of {self.config.name} cannot be exported; export its encoder: --part encoder")

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the feature pyramid of images, finest level first, each [N, h, w, C] contiguous.

        images: [N, 3, H, W], normalised; H and W are multiples of 32
        """
        maps = self.img_neck(self.img_backbone(images.contiguous(memory_format=torch.channels_last)))
        return tuple(level.permute(0, 2, 3, 1).contiguous() for level in maps)

    def image_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the pyramid."""
        return self.pyramid(images)

    def encode(self, inputs: ModelInput) -> Encoded:
        """Return "levels", the pyramid in float32 with zeros for missing cameras, and "finite"; see Encoded."""
        # sampling computes in float32, whatever type autocast has used in the encoder
        levels = tuple(level.float() for level in self.run_image_maps(inputs.images))
        if not inputs.present.all():
            # even an empty image gives features (from the biases), but a missing camera must contribute nothing
            present = torch.from_numpy(inputs.present).to(inputs.images.device)[:, None, None, None]
            levels = tuple(level * present for level in levels)
        return {"levels": levels, "finite": (all_finite(levels),)}

    def remember(self, encoded: Encoded, history: Sequence[FrameFeatures | None], inputs: ModelInput) -> FrameFeatures:
        """Return the memory entry of a frame: its pyramid and its cameras' matrices."""
        return FrameFeatures(encoded["levels"], inputs.global2image, inputs.present, inputs.stamps, inputs.stamp)

    def predict(
        self, encoded: Encoded, history: Sequence[FrameFeatures | None], inputs: ModelInput, carried: Any
    ) -> Prediction[Output, FrameFeatures]:
        """Return the prediction for one frame with its history; no state is carried to the next frame."""
        current = self.remember(encoded, history, inputs)
        outputs: Any = self.look([current, *(current if past is None else past for past in history)], inputs)
        return Prediction(replace(outputs, finite=outputs.finite & encoded["finite"][0]), current)

    def new_memory(self, interval: float) -> Memory[FrameFeatures]:
        """Return an empty memory that reaches back to the oldest frame that the variant uses."""
        frames = self.config.frames
        reach = math.ceil(frames.past * frames.interval / interval)
        capacity = reach + 2 if frames.past else 0
        return Memory(frames.past, frames.interval, capacity, frames.missing)


def check_settings(config: VariantConfig, rules: Iterable[tuple[bool, str]] = ()) -> None:
    """Raise ConfigError, naming the key and the remedy, for settings of a query decoder that do not fit together.

    rules: further rules of the family, each as (whether it holds, the remedy if it does not); checked after the rules
        that all heads share
    """
    head, neck = config.head, config.neck
    common = (
        (neck.num_outs == head.num_levels, f"neck.num_outs ({neck.num_outs}) must equal head.num_levels"),
        (neck.out_channels == head.embed_dims, f"neck.out_channels ({neck.out_channels}) must equal head.embed_dims"),
        (head.embed_dims % head.num_groups == 0, f"head.num_groups ({head.num_groups}) must divide head.embed_dims"),
        (head.embed_dims % head.num_heads == 0, f"head.num_heads ({head.num_heads}) must divide head.embed_dims"),
    )
    for holds, remedy in (*common, *rules):
        if not holds:
            raise ConfigError(f"{config.name}: {remedy}")


def levels_by_frame(named: Mapping[str, Tensor]) -> list[list[Tensor]]:
    """Return T x L maps [1, N, h, w, C] from CameraModel.step_inputs."""
    found: dict[str, list[Tensor]] = {}
    for name, level in named.items():
        frame, _, what = name.partition("_")
        if what.startswith("level"):
            found.setdefault(frame, []).append(level[None])
    return list(found.values())


def image_size_of(inputs: ModelInput) -> tuple[int, int]:
    """Return (height, width) of a frame's images, padding included, pixels."""
    return inputs.images.shape[-2], inputs.images.shape[-1]


def reference2image(frames: Sequence[FrameFeatures], reference2global: np.ndarray) -> np.ndarray:
    """Return the [T, N, 4, 4] float64 transforms from the current reference frame to the pixels of T frames' cameras.

    A missing camera gets zeros: every point then has depth 0 and is not visible.
    """
    return np.stack(
        [np.where(frame.present[:, None, None], frame.global2image @ reference2global, 0.0) for frame in frames]
    )
