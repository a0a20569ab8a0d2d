"""The training step of BEVDet and its successors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from bev_perception.config import TrainingConfig
from bev_perception.families.bevdet.bev_encoder import ResidualBlock, ResidualBlock3d
from bev_perception.families.bevdet.config import IN_VIEW
from bev_perception.families.bevdet.losses import all_loss_names, all_losses
from bev_perception.families.bevdet.model import BEVDet
from bev_perception.families.bevdet.truths import DetectionTruth, VoxelTruth
from bev_perception.supervision.samples import Batch, BatchGeometry, sample_generators
from bev_perception.supervision.step import TrainingStep
from bev_perception.types import Cameras


class BEVDetStep(TrainingStep[DetectionTruth | VoxelTruth]):
    """Training step of all variants: every frame of a queue is encoded anew, and only the current one learns."""

    model: BEVDet  # type: ignore[assignment]  # any model with an encoder can be trained

    def __init__(self, model: BEVDet, recipe: TrainingConfig, precision: str) -> None:
        """Keep the model; `precision` must be a key of PRECISIONS."""
        super().__init__(model, recipe, precision)  # type: ignore[arg-type]
        self.loss_names = all_loss_names(model.head, recipe.family)
        if self.dtype is not None:
            encode = functools.partial(self._encode, model.encode_images)
            model.encode_images = encode  # type: ignore[method-assign]

    def _encode(
        self, encode: Callable[[Tensor], tuple[Tensor, Tensor | None]], images: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `encode` makes of images in the encoder's precision, as float32."""
        with self._autocast(images.device):
            features, first = encode(images)
        return features.float(), None if first is None else first.float()

    def wide_layers(self) -> Iterable[nn.Module]:
        """Return the convolutions after the encoder."""
        parts = (part for name, part in self.model.named_children() if name not in self.model.encoder_parts)
        return [m for part in parts for m in part.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]

    def decoder_passes(self) -> Iterable[nn.Module]:
        """Return the residual blocks after the encoder."""
        return [m for m in self.model.modules() if isinstance(m, (ResidualBlock, ResidualBlock3d))]

    def forward(self, batch: Batch[DetectionTruth | VoxelTruth], memory: Any) -> tuple[dict[str, Tensor], None]:
        """Return all_losses of the batch; nothing is remembered.

        In the first epochs, see BEVDetRecipe.past_from, the maps of past frames are zeros.
        """
        assert isinstance(batch.images, Tensor), "the encoder is trained, so images come as pixels"
        family = self.recipe.family
        with_history = self.epoch >= family.past_from
        used = batch.images if with_history else batch.images[:, :1]
        images = self.prepare_images(used, sample_generators(batch))  # [B, T, N, 3, H, W]
        cameras = cameras_by_frame(batch.geometry)
        world = batch.geometry.world.cpu().numpy()
        ego2global = [frame.ego2global[:, 0] for frame in cameras]
        ego2global[0] = batch.geometry.reference2global.cpu().numpy() @ world  # before the world was changed
        output = self.model.perceive(
            images.unbind(dim=1), cameras, ego2global, world, IN_VIEW, with_history=with_history
        )
        return all_losses(output, batch.truths, self.model.head, family), None


def cameras_by_frame(geometry: BatchGeometry) -> list[Cameras]:
    """Return the cameras of each frame, each matrix [B, N, ...]."""
    matrices = (geometry.intrinsics, geometry.source2image, geometry.sensor2ego, geometry.ego2global)
    return [Cameras(*frame) for frame in zip(*(m.cpu().numpy().swapaxes(0, 1) for m in matrices), strict=True)]
