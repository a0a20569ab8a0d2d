"""What training carries from step to step, also as plain values that are saved with the training's state."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from bev_perception.families.sparse4d.denoising import DenoisingMemory
from bev_perception.families.sparse4d.instances import Instances


@dataclass(frozen=True)
class Carried:
    """The memory of a batch.

    instances: those that go on into the next frame.
    denoising: the denoising instances that do; None without any.
    """

    instances: Instances
    denoising: DenoisingMemory | None

    def to_plain(self) -> dict[str, Any]:
        """Return the memory as nested dictionaries of tensors."""
        instances = self.instances
        return {
            "features": instances.features,
            "anchors": instances.anchors,
            "confidences": instances.confidences,
            "reference2global": torch.from_numpy(instances.reference2global),
            "stamps": torch.from_numpy(instances.stamps),
            "denoising": None if self.denoising is None else dict(vars(self.denoising)),
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any], device: torch.device) -> Carried:
        """Return the memory that to_plain gave, on a device."""
        tensors = (values[name].to(device) for name in ("features", "anchors", "confidences"))
        poses = (values[name].cpu().numpy() for name in ("reference2global", "stamps"))
        noisy = values["denoising"]
        denoising = None
        if noisy is not None:
            denoising = DenoisingMemory(*(noisy[item.name].to(device) for item in fields(DenoisingMemory)))
        return cls(Instances(*tensors, *poses), denoising)
