"""Encoders, which variants with equal weights share, and the memory of each variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bev_perception.config import VariantConfig
from bev_perception.models.checkpoints import CheckpointInfo
from bev_perception.models.memory import Memory
from bev_perception.models.precision import encoder_precision
from bev_perception.models.protocol import Encoded, Model, Prediction
from bev_perception.pipeline.engines import use_engine
from bev_perception.sensing.preprocess import reference2global
from bev_perception.types import Cameras, Frame, ModelInput


@dataclass(frozen=True, eq=False)
class LoadedVariant:
    """A variant with its weights loaded.

    config: the variant
    model: its model, with the weights
    checkpoint: the file that the weights come from, and what it says about them
    """

    config: VariantConfig
    model: Model
    checkpoint: CheckpointInfo


class Stream:
    """A variant with its own memory."""

    def __init__(self, variant: LoadedVariant, memory_interval: float) -> None:
        """Start with an empty memory of frames that are remembered every `memory_interval` s."""
        self.config, self.model = variant.config, variant.model
        self.memory: Memory[Any] = variant.model.new_memory(memory_interval)

    def predict(self, encoded: Encoded, memory: Memory[Any], inputs: ModelInput, frame: Frame) -> Prediction[Any, Any]:
        """Return the variant's prediction for a frame, in the variant's own reference frame."""
        seen = inputs.seen_from(reference2global(self.config, frame))
        return self.model.predict(encoded, memory.history(frame.stamp), seen, memory.carried)

    def resize(self, memory_interval: float) -> None:
        """Fit the capacity of the memory to frames that are remembered every `memory_interval` s; keep its entries."""
        self.memory = self.memory.with_capacity(self.model.new_memory(memory_interval).capacity)


class Encoder:
    """The encoder of the images for one stream, or for several with the same weights."""

    def __init__(self, variants: Sequence[LoadedVariant], memory_interval: float, precision: str) -> None:
        """Encode with the weights of the first variant, which the others share; see group_by_encoder."""
        self.image = variants[0].config.image
        self.streams = tuple(Stream(variant, memory_interval) for variant in variants)
        self._model, self._precision = variants[0].model, precision

    def use_engine(self, engine: str, device: torch.device) -> None:
        """Let an engine encode the images from now on, see engines.use_engine."""
        use_engine(self._model, self.streams[0].config, engine, self._precision, device)

    def encode(self, inputs: ModelInput) -> Encoded:
        """Return the encoded images, which all streams use."""
        with encoder_precision(self._precision, inputs.images.device):
            return self._model.encode(inputs)

    def warm_up(self, inputs: ModelInput) -> None:
        """Run the encoder and all models once, and discard the results."""
        encoded = self.encode(inputs)
        for stream in self.streams:
            stream.model.predict(encoded, [None] * stream.memory.count, inputs, None)


def group_by_encoder(variants: Sequence[LoadedVariant]) -> list[list[LoadedVariant]]:
    """Group the variants by equal encoders; within a group, make all use the encoder modules of the first."""
    groups: list[list[LoadedVariant]] = []
    for variant in variants:
        group = next((g for g in groups if _same_encoder(g[0], variant)), None)
        if group is None:
            groups.append([variant])
            continue
        group.append(variant)
        for part in variant.model.encoder_parts:
            setattr(variant.model, part, getattr(group[0].model, part))
    return groups


def _same_encoder(a: LoadedVariant, b: LoadedVariant) -> bool:
    if (a.config.image, a.config.backbone, a.config.neck) != (b.config.image, b.config.backbone, b.config.neck):
        return False
    if type(a.model).encode is not type(b.model).encode or a.model.encoder_parts != b.model.encoder_parts:
        return False
    return all(_same_weights(getattr(a.model, part), getattr(b.model, part)) for part in a.model.encoder_parts)


def _same_weights(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    # inference does not use the number of batches that a norm has seen in training
    return all(torch.equal(ours[key], theirs[key]) for key in ours if not key.endswith("num_batches_tracked"))


def empty_input(cameras: int, height: int, width: int, device: torch.device) -> ModelInput:
    """Return the input of a frame of black images, height x width pixels."""
    return ModelInput(
        images=torch.zeros(cameras, 3, height, width, device=device),
        cameras=Cameras.identities(cameras),
        reference2global=np.eye(4),
        present=np.ones(cameras, bool),
        stamps=np.zeros(cameras, np.int64),
        stamp=0,
    )


def noise_input(cameras: int, height: int, width: int, device: torch.device, seconds: float = 0.0) -> ModelInput:
    """Return the input of a frame of noise, height x width pixels, from a vehicle that drives straight on at 10 m/s.

    Its cameras look around, 90 degrees wide each.

    seconds: time of the frame, also the seed of the noise
    """
    intrinsics = np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1.0]])
    rig = Cameras.identities(cameras)
    for n, yaw in enumerate(2 * np.pi * np.arange(cameras) / max(cameras, 1)):
        ahead = np.array([np.cos(yaw), np.sin(yaw), 0])
        rig.intrinsics[n] = intrinsics
        rig.sensor2ego[n, :3, :3] = np.stack([(np.sin(yaw), -np.cos(yaw), 0), (0, 0, -1), ahead], axis=1)
        rig.sensor2ego[n, :3, 3] = 0.3 * ahead + (0, 0, 1.5)
    rig.ego2global[:, 0, 3] = 10 * seconds
    reference2global = np.eye(4)
    reference2global[0, 3] = 10 * seconds
    stamp = round(seconds * 1e9)
    generator = torch.Generator().manual_seed(stamp)
    return ModelInput(
        images=torch.randn(cameras, 3, height, width, generator=generator).to(device),
        cameras=rig,
        reference2global=reference2global,
        present=np.ones(cameras, bool),
        stamps=np.full(cameras, stamp),
        stamp=stamp,
    )
