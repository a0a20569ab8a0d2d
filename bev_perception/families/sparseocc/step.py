"""The training step of SparseOcc."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bev_perception.config import TrainingConfig
from bev_perception.families.sparseocc.losses import class_weights, occupancy_loss_names, occupancy_losses
from bev_perception.families.sparseocc.mask_decoder import MaskDecoderLayer, RandomVoxels, draw_numbers
from bev_perception.families.sparseocc.model import SparseOcc
from bev_perception.families.sparseocc.voxel_decoder import CUBE_SIDES, VoxelDecoderLayer
from bev_perception.supervision.samples import Batch, OccupancyTruth, sample_generators
from bev_perception.supervision.step import TrainingStep


class OccupancyStep(TrainingStep[OccupancyTruth]):
    """Training step of the occupancy model, with occupancy_losses."""

    model: SparseOcc
    class_weights: Tensor

    def __init__(self, model: SparseOcc, recipe: TrainingConfig, precision: str) -> None:
        """Keep the model; `precision` must be a key of PRECISIONS."""
        super().__init__(model, recipe, precision)
        weights = torch.tensor(class_weights(model.config.class_names))
        self.register_buffer("class_weights", weights, persistent=False)
        self.loss_names = occupancy_loss_names(len(CUBE_SIDES), 1 + model.config.head.mask_layers)

    def decoder_passes(self) -> Iterable[nn.Module]:
        """Return the layers of the voxel decoder and the single layer that all passes of the mask decoder share."""
        return [m for m in self.model.modules() if isinstance(m, (VoxelDecoderLayer, MaskDecoderLayer))]

    def forward(self, batch: Batch[OccupancyTruth], memory: None) -> tuple[dict[str, Tensor], None]:
        """Return occupancy_losses of the batch."""
        generators = sample_generators(batch)
        head = self.model.config.head
        count, device = head.num_groups * head.num_points, self.class_weights.device

        def choose(inside: Tensor, locations: Tensor) -> Tensor:
            """Use each sample's own generator, so that its random voxels do not depend on the rest of the batch."""
            return torch.cat([c(inside[b : b + 1], locations[b : b + 1]) for b, c in enumerate(choices)])

        views = self.encode(batch, generators)  # draws from the generators first
        choices = [RandomVoxels(draw_numbers(g, head).to(device), count, head.occ_size) for g in generators]
        output = self.model.pts_bbox_head(views, choose)
        return occupancy_losses(output, batch.truths, self.class_weights), None
