"""The settings of SparseOcc (Liu et al., ECCV 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from bev_perception.strict import ConfigError, check_positive, check_share


@dataclass(frozen=True)
class SparseOccHeadConfig:
    """The voxel decoder and the mask transformer.

    num_query: masks
    num_points: sampling points a group, frame and query
    num_levels: levels of the pyramid that are sampled
    embed_dims: width of the features of queries and voxels
    mask_layers: passes of the one mask layer
    num_groups: groups of channels that sample and mix for themselves
    num_heads: heads of the self-attention
    ffn_dim: inner width of the feed-forward layers
    mixing_out_points: points that mixing makes of the sampled ones
    dropout: share of activations left out in training
    kept_training: voxels that each of the three stages keeps in training
    kept_testing: voxels that each of the three stages keeps in inference
    panoptic: whether objects are told apart
    score_threshold: lowest probability of a mask's class
    overlap_threshold: share of a mask that better masks must leave to it, of panoptic variants
    occ_range: x, y, z low, then high, m, of the grid in base_link
    occ_size: number of voxels along x, y, z
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
        sizes = ("num_query", "num_points", "num_levels", "embed_dims", "num_groups", "num_heads", "ffn_dim")
        check_positive(self, "head", (*sizes, "mixing_out_points"))
        check_share("head.dropout", self.dropout)
        if not (0 <= self.score_threshold <= 1 and 0 <= self.overlap_threshold <= 1):
            raise ConfigError("head: score_threshold and overlap_threshold must lie in 0..1")
        if min(self.kept_training + self.kept_testing) < 1 or self.mask_layers < 0:
            raise ConfigError("head: the stages must keep at least one voxel each, mask_layers must not be negative")

    @property
    def resolution(self) -> float:
        """Length of a voxel's edge, m."""
        return (self.occ_range[3] - self.occ_range[0]) / self.occ_size[0]


@dataclass(frozen=True)
class SparseOccRecipe:
    """How occupancy is trained.

    camera_mask: whether masks are compared only where the cameras see
    seen_only: whether voxels that neither the cameras nor the lidar see count as free, as in labels that come of lidar
        points. Where labels know the far sides of objects, most of what is filled is hidden, and finding it uses up
        the few voxels that a small model keeps
    """

    camera_mask: bool = False
    seen_only: bool = False
