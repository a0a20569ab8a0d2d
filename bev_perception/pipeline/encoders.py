"""Which variants share an encoder, and the memory of what it has encoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bev_perception.config import VariantConfig
from bev_perception.models.checkpoints import CheckpointInfo
from bev_perception.models.encoder import ENCODER_PARTS, CameraModel
from bev_perception.models.memory import FeatureQueue, FrameFeatures
from bev_perception.models.precision import encoder_precision
from bev_perception.types import ModelInput


@dataclass(frozen=True, eq=False)
class LoadedVariant:
    """A variant with its weights in place; checkpoint: where they come from."""

    config: VariantConfig
    model: CameraModel
    checkpoint: CheckpointInfo


class Encoder:
    """Variants that share the weights which encode images, with the memory of what was encoded."""

    def __init__(self, variants: Sequence[LoadedVariant], memory_interval: float, precision: str) -> None:
        """Share the first variant's encoder; the memory reaches as far back as any of the variants looks."""
        self.variants = tuple(variants)
        self.precision = precision
        self.image = variants[0].config.image
        queues = [
            v.model.new_memory(math.ceil(v.config.frames.past * v.config.frames.interval / memory_interval) + 2)
            for v in variants  # the oldest frame that the variant looks at must be among those kept
        ]
        self.empty = FeatureQueue(max(q.capacity for q in queues), max(q.max_age for q in queues))
        self.memory = self.empty

    def encode(self, inputs: ModelInput) -> FrameFeatures:
        """Return what is remembered of a frame."""
        with encoder_precision(self.precision, inputs.images.device):
            return self.variants[0].model.encode_frame(inputs)


def group_by_encoder(variants: Sequence[LoadedVariant]) -> list[list[LoadedVariant]]:
    """Return the variants in groups of equal encoders; in a group all use the first one's weights, in one place."""
    groups: list[list[LoadedVariant]] = []
    for variant in variants:
        group = next((g for g in groups if _same_encoder(g[0], variant)), None)
        if group is None:
            groups.append([variant])
            continue
        group.append(variant)
        for part in ENCODER_PARTS:
            setattr(variant.model, part, getattr(group[0].model, part))
    return groups


def _same_encoder(a: LoadedVariant, b: LoadedVariant) -> bool:
    if (a.config.image, a.config.backbone, a.config.neck) != (b.config.image, b.config.backbone, b.config.neck):
        return False
    weights = [
        {k: t for part in ENCODER_PARTS for k, t in getattr(v.model, part).state_dict(prefix=f"{part}.").items()}
        for v in (a, b)
    ]
    return all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0] if not _is_count(key))


def _is_count(key: str) -> bool:
    """Whether it is the number of batches that a norm has seen in training, which inference does not read."""
    return key.endswith("num_batches_tracked")
