"""The settings of SparseOcc (Liu et al., ECCV 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from bev_perception.config import VariantConfig
from bev_perception.strict import ConfigError


@dataclass(frozen=True)
class SparseOccHeadConfig:
    """The voxel decoder and the mask transformer of SparseOcc (Liu et al., ECCV 2024).

    kept_training, kept_testing: voxels that each of the three stages keeps, in training and otherwise.
    num_query: masks.  mask_layers: passes of the one mask layer.  panoptic: whether objects are told apart.
    score_threshold: of a mask's class.  overlap_threshold: share of a mask that must not be taken by better ones.
    occ_range: x, y, z low, then high, m.  occ_size: number of voxels along x, y, z.
    """

    num_query: int = 100
    num_points: int = 4
    num_levels: int = 4
    embed_dims: int = 256
    mask_layers: int = 2
    num_groups: int = 4
    num_heads: int = 8
    ffn_dim: int = 512
    mixing_out_points: int = 128
    dropout: float = 0.1
    kept_training: tuple[int, int, int] = (4000, 16000, 64000)
    kept_testing: tuple[int, int, int] = (2000, 8000, 32000)
    panoptic: bool = False
    score_threshold: float = 0.3
    overlap_threshold: float = 0.8
    occ_range: tuple[float, float, float, float, float, float] = (-40.0, -40.0, -1.0, 40.0, 40.0, 5.4)
    occ_size: tuple[int, int, int] = (200, 200, 16)

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        edges = [
            (high - low) / size if size > 0 else 0.0
            for low, high, size in zip(self.occ_range[:3], self.occ_range[3:], self.occ_size, strict=True)
        ]
        if min(edges) <= 0 or max(edges) - min(edges) > 1e-6 * max(edges):
            raise ConfigError(
                f"head: occ_range {self.occ_range} in occ_size {self.occ_size} voxels gives voxels of "
                f"{' x '.join(f'{edge:g}' for edge in edges)} m; they must be cubes"
            )
        if not (0 <= self.score_threshold <= 1 and 0 <= self.overlap_threshold <= 1):
            raise ConfigError("head: score_threshold and overlap_threshold must lie in 0..1")
        if min(self.kept_training + self.kept_testing) < 1 or self.mask_layers < 0:
            raise ConfigError("head: the stages must keep at least one voxel each, mask_layers must not be negative")

    @property
    def resolution(self) -> float:
        """Length of a voxel's edge, m."""
        return (self.occ_range[3] - self.occ_range[0]) / self.occ_size[0]


def sparseocc_head(config: VariantConfig) -> SparseOccHeadConfig:
    """Return the head's settings of a variant of this family; raise ConfigError for another family's."""
    if not isinstance(config.head, SparseOccHeadConfig):
        raise ConfigError(f"{config.name} is a variant of {config.family}, which gives no occupancy; choose another")
    return config.head
