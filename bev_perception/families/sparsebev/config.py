"""The settings of SparseBEV (Liu et al., ICCV 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from bev_perception.config import VariantConfig
from bev_perception.strict import ConfigError


@dataclass(frozen=True)
class SparseBEVHeadConfig:
    """The query decoder of SparseBEV (Liu et al., ICCV 2023).

    num_query: learnt queries.  proposals: further ones, which start where the perspective head sees objects; 0: none.
    correct_velocity: let each pass correct the velocity that it looks along, as Sparse4D does (Lin et al., 2022).
    """

    num_query: int = 900
    proposals: int = 0
    correct_velocity: bool = False
    num_points: int = 4
    num_levels: int = 4
    embed_dims: int = 256
    num_layers: int = 6
    num_groups: int = 4
    num_heads: int = 8
    ffn_dim: int = 512
    mixing_out_points: int = 128
    code_size: int = 10
    dropout: float = 0.1
    pc_range: tuple[float, float, float, float, float, float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)


@dataclass(frozen=True)
class DecodeConfig:
    """From raw outputs to boxes: at most max_num above score_threshold with centres inside post_center_range (m)."""

    max_num: int = 300
    score_threshold: float = 0.05
    post_center_range: tuple[float, float, float, float, float, float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)


def sparsebev_head(config: VariantConfig) -> SparseBEVHeadConfig:
    """Return the head's settings of a variant of this family; raise ConfigError for another family's."""
    if not isinstance(config.head, SparseBEVHeadConfig):
        raise ConfigError(f"{config.name} is a variant of {config.family}, which detects no boxes; choose another")
    return config.head
