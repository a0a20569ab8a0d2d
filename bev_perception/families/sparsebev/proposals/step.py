"""The training step of a perspective head and its encoder, without the decoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor, nn

from bev_perception.families.sparsebev.model import SparseBEV
from bev_perception.families.sparsebev.proposals.losses import LOSS_NAMES as PERSPECTIVE_LOSSES
from bev_perception.families.sparsebev.proposals.losses import weighted_perspective_losses
from bev_perception.families.sparsebev.proposals.perspective import invert_cameras
from bev_perception.supervision.samples import Batch, BoxTruth, sample_generators
from bev_perception.supervision.step import TrainingStep


def wide_layers(model: SparseBEV) -> Iterable[nn.Module]:
    """Return the computationally heavy layers of a model's perspective head, if it has one."""
    return () if model.perspective_head is None else model.perspective_head.wide_layers()


class PerspectiveStep(TrainingStep[BoxTruth]):
    """Training step of only the encoder and the perspective head, on the newest frame, with perspective_losses."""

    model: SparseBEV
    loss_names = PERSPECTIVE_LOSSES

    def wide_layers(self) -> Iterable[nn.Module]:
        """Return the wide layers of the perspective head."""
        return wide_layers(self.model)

    def decoder_passes(self) -> Iterable[nn.Module]:
        """Return nothing, since the decoder is not trained."""
        return ()

    def forward(self, batch: Batch[BoxTruth], memory: None) -> tuple[dict[str, Tensor], None]:
        """Return perspective_losses of the batch's newest frames."""
        assert isinstance(batch.images, Tensor)
        newest = replace(batch, images=batch.images[:, :1], reference2image=batch.reference2image[:, :1])
        views = self.encode(newest, sample_generators(batch))
        assert self.model.perspective_head is not None
        back = invert_cameras(views.reference2image[:, 0])
        seen = self.model.perspective_head(views.levels_by_frame[0][0], back, views.image_size)
        return weighted_perspective_losses(seen, batch, views, self.recipe), None
