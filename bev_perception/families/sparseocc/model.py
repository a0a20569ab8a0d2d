"""SparseOcc (Liu et al., ECCV 2024): semantic and panoptic occupancy without a dense grid.

A backbone and a feature pyramid encode every image once; a sparse voxel decoder finds the voxels that are not free
(voxel_decoder), and a mask transformer predicts the class and the object of each of them (mask_decoder).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bev_perception.config import VariantConfig
from bev_perception.families.sparseocc.config import SparseOccHeadConfig
from bev_perception.families.sparseocc.decode import decode_occupancy
from bev_perception.families.sparseocc.mask_decoder import ChooseVoxels, MaskDecoder, RandomVoxels, draw_numbers
from bev_perception.families.sparseocc.voxel_decoder import CHILDREN, CUBE_SIDES, VoxelDecoder, VoxelStage
from bev_perception.models.encoder import CameraModel, check_settings, image_size_of, levels_by_frame
from bev_perception.models.memory import FrameFeatures
from bev_perception.models.protocol import Perception, all_finite
from bev_perception.models.query_layers import EncodedViews
from bev_perception.ops.sampling import LevelsByFrame
from bev_perception.types import Limits, ModelInput

#: seed of the voxel sampling in inference, the same for each frame so that results do not depend on earlier frames
SAMPLING_SEED = 0


@dataclass(frozen=True)
class SparseOccOutput:
    """The outputs of both decoders.

    stages: of the voxel decoder, coarse to fine; the masks are over the N voxels of the last one
    class_logits: [M + 1, B, Q, classes without free], before the first and after each of M passes of the mask
        transformer
    mask_logits: [M + 1, B, Q, N], before the first and after each pass
    finite: [] bool, whether everything computed is finite
    """

    stages: tuple[VoxelStage, ...]
    class_logits: Tensor
    mask_logits: Tensor
    finite: Tensor


class SparseOccHead(nn.Module):
    """The voxel decoder and the mask transformer."""

    def __init__(self, head: SparseOccHeadConfig, num_classes: int, frames: int) -> None:
        """Build the head from settings that have passed _check; `num_classes` includes free space."""
        super().__init__()
        self.kept_training, self.kept_testing = head.kept_training, head.kept_testing
        # names as in the official checkpoints: transformer.voxel_decoder, transformer.decoder
        self.transformer = nn.ModuleDict(
            {
                "voxel_decoder": VoxelDecoder(head, num_classes, frames),
                "decoder": MaskDecoder(head, num_classes - 1, frames),
            }
        )

    def forward(self, views: EncodedViews, choose: ChooseVoxels) -> SparseOccOutput:
        """Return the outputs of both decoders for encoded views; `choose` chooses the voxels that a query samples.

        Training and inference keep different numbers of voxels.
        """
        kept = self.kept_training if self.training else self.kept_testing
        stages, features = self.transformer["voxel_decoder"](views, kept)
        classes, masks = self.transformer["decoder"](features, stages[-1].locations, views, choose)
        finite = all_finite(x.detach() for x in (classes, masks))
        return SparseOccOutput(stages, classes, masks, finite)


class SparseOcc(CameraModel[SparseOccOutput]):
    """The occupancy model: voxels, classes and masks in the ego frame (base_link) from images and memory.

    numbers: random numbers of inference, see draw_numbers
    """

    numbers: Tensor

    def __init__(self, config: VariantConfig) -> None:
        """Build the model with fresh weights; raise ConfigError for settings that do not fit together."""
        _check(config)
        super().__init__(config)
        self.pts_bbox_head = SparseOccHead(config.head, len(config.class_names), len(config.frames.offsets))
        numbers = draw_numbers(torch.Generator("cpu").manual_seed(SAMPLING_SEED), config.head)
        self.register_buffer("numbers", numbers, persistent=False)

    def perceive(
        self,
        levels_by_frame: LevelsByFrame,
        reference2image: Tensor,
        image_size: tuple[int, int],
        numbers: Tensor,
    ) -> SparseOccOutput:
        """Predict occupied voxels and their masks from encoded frames, the current one first.

        levels_by_frame: T x L maps [B, N, h, w, C], from `encode`
        reference2image: [B, T, N, 4, 4], ego frame (m) to depth-scaled pixels of each image; zeros for a missing camera
        image_size: (height, width) of the encoded images including padding, pixels
        numbers: for the random voxels of their masks that queries sample; see draw_numbers
        """
        head = self.config.head
        choose = RandomVoxels(numbers, head.num_groups * head.num_points, head.occ_size)
        output: SparseOccOutput = self.pts_bbox_head(EncodedViews(levels_by_frame, reference2image, image_size), choose)
        return output

    def look(self, frames: Sequence[FrameFeatures], current: ModelInput) -> SparseOccOutput:
        """Return the outputs for encoded frames, the first of which is `current`; the batch is 1.

        The same input gives the same output, whatever was predicted before.
        """
        return self._step(self.step_inputs(frames, current.reference2global), image_size_of(current))

    def step(self, named: Mapping[str, Tensor], image_size: tuple[int, int]) -> dict[str, Tensor]:
        """Return the last "class_logits" [Q, classes], "mask_logits" [Q, N] and "locations" [N, 3]; see CameraModel."""
        output = self._step(named, image_size)
        return {
            "class_logits": output.class_logits[-1, 0],
            "mask_logits": output.mask_logits[-1, 0],
            "locations": output.stages[-1].locations[0],
        }

    def _step(self, named: Mapping[str, Tensor], image_size: tuple[int, int]) -> SparseOccOutput:
        return self.perceive(levels_by_frame(named), named["reference2image"][None], image_size, self.numbers)

    def decode(self, outputs: SparseOccOutput, limits: Limits) -> Perception:
        """Return the occupancy of the last predictions, in base_link; limits are ignored, as they concern boxes.

        Raises NotFiniteError for outputs that hold NaN or infinity, or that were computed from such features.
        """
        return Perception(occupancy=decode_occupancy(outputs, self.config.head, self.config.class_names))


def _check(config: VariantConfig) -> None:
    """Raise ConfigError for settings that do not fit together."""
    head = config.head
    side, ratio = CUBE_SIDES[0], CUBE_SIDES[0] // CUBE_SIDES[-1]
    first = math.prod(size // side for size in head.occ_size)
    rules = [
        (not config.reference_frame.is_lidar, "reference_frame.sensor must be 'base_link', the frame of the grid"),
        (config.class_names[-1] == "free", f"the last of class_names ({config.class_names[-1]}) must be 'free'"),
        (all(size % side == 0 for size in head.occ_size), f"head.occ_size {head.occ_size} must be multiples of {side}"),
        (head.num_points % ratio == 0, f"head.num_points ({head.num_points}) must be a multiple of {ratio}"),
    ]
    for name, kept in (("kept_training", head.kept_training), ("kept_testing", head.kept_testing)):
        most = [len(CHILDREN) * parents for parents in (first, *kept)]
        for stage, (count, limit) in enumerate(zip(kept, most, strict=False)):
            rules.append((count <= limit, f"head.{name}[{stage}] ({count}) must be at most {limit}, all children"))
    check_settings(config, rules)
