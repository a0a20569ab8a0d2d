"""What the models of query decoders share: images are encoded once, and past frames' features are remembered."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bev_perception.config import ConfigError, VariantConfig
from bev_perception.models.backbones import build_backbone
from bev_perception.models.memory import FeatureQueue, FrameFeatures
from bev_perception.models.necks import build_neck
from bev_perception.types import ModelInput

Output = TypeVar("Output")

#: the parts of a CameraModel that encode images, by name
ENCODER_PARTS = ("img_backbone", "img_neck")


class CameraModel(nn.Module, Generic[Output]):
    """Images and memory to outputs: a backbone and a pyramid for every image, and `predict` over encoded frames."""

    def __init__(self, config: VariantConfig) -> None:
        """Build the encoder with fresh weights; raise ConfigError for settings that do not fit together."""
        super().__init__()
        self.config = config
        self.img_backbone = build_backbone(config.backbone)
        self.img_neck = build_neck(config.neck, self.img_backbone.out_channels)

    @abstractmethod
    def predict(self, frames: Sequence[FrameFeatures], current: ModelInput) -> Output:
        """Return the outputs for encoded frames, the first of which is `current`; the batch is 1."""

    def new_memory(self, capacity: int | None = None) -> FeatureQueue:
        """Return an empty memory for `capacity` frames; as many as the variant looks back at unless given."""
        frames = self.config.frames
        max_age = round((frames.past + 1) * frames.interval * 1e9)  # one step beyond the oldest that is looked at
        return FeatureQueue(frames.past if capacity is None else capacity, max_age)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the pyramid of images, finest level first, each [N, h, w, C] contiguous.

        images: [N, 3, H, W], normalised, H and W multiples of 32.
        """
        maps = self.img_neck(self.img_backbone(images.contiguous(memory_format=torch.channels_last)))
        return tuple(level.permute(0, 2, 3, 1).contiguous() for level in maps)

    def encode_frame(self, inputs: ModelInput) -> FrameFeatures:
        """Return what is remembered of a frame; the features of missing cameras are zeros."""
        # what samples the features computes in float32, whatever autocast has made of the encoder
        levels = tuple(level.float() for level in self.encode(inputs.images))
        if not inputs.present.all():
            # an empty image has features too (the biases): a missing camera must add nothing
            present = torch.from_numpy(inputs.present).to(inputs.images.device)[:, None, None, None]
            levels = tuple(level * present for level in levels)
        return FrameFeatures(levels, inputs.global2image, inputs.present, inputs.stamps, inputs.stamp)

    def forward(self, inputs: ModelInput, memory: FeatureQueue) -> tuple[Output, FeatureQueue]:
        """Return the outputs for one frame with its history, and the memory with this frame in it.

        The memory given is not changed, so the caller decides which of the two to keep. The batch is 1.
        Raises NotImplementedError if the variant needs future frames; see predict_queue.
        """
        current = self.encode_frame(inputs)
        return self.predict(self.with_history(current, memory), inputs), memory.push(current)

    def with_history(self, current: FrameFeatures, memory: FeatureQueue) -> list[FrameFeatures]:
        """Return the frames that the variant looks at, `current` first.

        Raises NotImplementedError if the variant needs future frames.
        """
        frames = self.config.frames
        if frames.future:
            raise NotImplementedError(
                f"{self.config.name} needs {frames.future} frames of the future; "
                "it can only run on recorded data, through predict_queue"
            )
        return [current, *memory.history(current, frames.past, frames.interval)]

    def predict_queue(self, inputs: Sequence[ModelInput]) -> Output:
        """Return the outputs for one frame of a recording whose neighbours are all at hand; the batch is 1.

        inputs: the current frame, then its neighbours in the order of config.frames.offsets, one each. Where the
        recording ends, repeat a frame: the same object given more than once is encoded once.
        Raises ValueError for another number of frames.
        """
        offsets = self.config.frames.offsets
        if len(inputs) != len(offsets):
            raise ValueError(f"{self.config.name} takes the {len(offsets)} frames {offsets}; {len(inputs)} were given")
        distinct = {id(frame): frame for frame in inputs}
        encoded = {key: self.encode_frame(frame) for key, frame in distinct.items()}
        return self.predict([encoded[id(frame)] for frame in inputs], inputs[0])


def check_settings(config: VariantConfig, rules: Iterable[tuple[bool, str]]) -> None:
    """Raise ConfigError, naming the key and the remedy, for settings that do not fit together.

    rules: those of the family, each as whether it holds and what to do if it does not; those of all heads come first.
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


def reference2image(frames: Sequence[FrameFeatures], reference2global: np.ndarray) -> np.ndarray:
    """Return [T, N, 4, 4] float64: the current reference frame to the pixels of every frame's cameras.

    A missing camera gets zeros: every point then has depth 0 and is not seen.
    """
    return np.stack(
        [np.where(frame.present[:, None, None], frame.global2image @ reference2global, 0.0) for frame in frames]
    )
