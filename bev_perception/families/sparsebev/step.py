"""The training step of SparseBEV."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from bev_perception.config import TrainingConfig
from bev_perception.families.sparsebev.losses import detection_losses, loss_names
from bev_perception.families.sparsebev.model import SparseBEV
from bev_perception.families.sparsebev.proposals.losses import LOSS_NAMES as PERSPECTIVE_LOSSES
from bev_perception.families.sparsebev.proposals.losses import weighted_perspective_losses
from bev_perception.families.sparsebev.proposals.step import wide_layers
from bev_perception.families.sparsebev.targets import draw_denoising, make_denoising
from bev_perception.supervision.samples import Batch, BoxTruth, sample_generators
from bev_perception.supervision.step import TrainingStep


class DetectionStep(TrainingStep[BoxTruth]):
    """Training step of the detector: denoising queries beside the learnt ones, and detection_losses."""

    model: SparseBEV

    def __init__(self, model: SparseBEV, recipe: TrainingConfig, precision: str) -> None:
        """Keep the model; `precision` must be a key of PRECISIONS."""
        super().__init__(model, recipe, precision)
        self.loss_names = loss_names(model.config.head.num_layers, denoising=recipe.family.denoising_groups > 0)
        head = model.perspective_head
        self._supervised = head is not None and any(p.requires_grad for p in head.parameters())
        if self._supervised:
            self.loss_names += PERSPECTIVE_LOSSES

    def wide_layers(self) -> Iterable[nn.Module]:
        """Return the wide layers of the perspective head, if there is one."""
        return wide_layers(self.model)

    def decoder_passes(self) -> Iterable[nn.Module]:
        """Return the single decoder layer that all passes share."""
        return (self.model.pts_bbox_head.decoder_layer,)

    def forward(self, batch: Batch[BoxTruth], memory: None) -> tuple[dict[str, Tensor], None]:
        """Return detection_losses of the batch, and perspective_losses if the model's perspective head is trained."""
        config = self.model.config
        generators = sample_generators(batch)
        draws = [
            draw_denoising(len(truth.labels), self.recipe.family.denoising_groups, len(config.class_names), generator)
            for truth, generator in zip(batch.truths, generators, strict=True)
        ]
        queries = config.head.num_query + config.head.proposals.queries
        noise = self.recipe.family.proposals.denoising_velocity
        denoising = make_denoising(batch.truths, draws, queries, config.head.pc_range, noise)
        views = self.encode(batch, generators)
        output = self.model.detect(
            views.levels_by_frame,
            views.reference2image,
            batch.time_differences,
            views.image_size,
            None if denoising is None else denoising.queries,
        )
        weights = self.model.pts_bbox_head.code_weights
        losses = detection_losses(output, batch.truths, denoising, weights, self.recipe.family.proposals.moving_weight)
        if self._supervised and output.seen is not None:
            losses |= weighted_perspective_losses(output.seen, batch, views, self.recipe)
        return losses, None
