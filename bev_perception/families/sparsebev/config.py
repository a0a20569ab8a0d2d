"""The settings of SparseBEV (Liu et al., ICCV 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bev_perception.families.sparsebev.proposals.config import ProposalsConfig, ProposalsRecipe
from bev_perception.strict import ConfigError, check_box, check_positive, check_share

#: settings of the head that must be positive, among others
SIZES = ("num_points", "num_levels", "embed_dims", "num_groups", "num_heads", "ffn_dim")
#: codes of a box: centre, logarithms of its sizes, sine and cosine of its yaw, velocity
CODE_SIZE = 10


@dataclass(frozen=True)
class DecodeConfig:
    """From outputs to boxes.

    max_num: the most boxes
    score_threshold: lowest score of a box
    post_center_range: x, y, z low, then high, m, in the reference frame, in which the centres of boxes must lie
    """

    max_num: int = 300
    score_threshold: float = 0.05
    post_center_range: tuple[float, float, float, float, float, float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.max_num < 1:
            raise ConfigError(f"head.decode.max_num ({self.max_num}) must be positive")
        if not 0 <= self.score_threshold <= 1:
            raise ConfigError(f"head.decode.score_threshold ({self.score_threshold}) must lie in 0..1")
        check_box("head.decode.post_center_range", self.post_center_range)


@dataclass(frozen=True)
class SparseBEVHeadConfig:
    """The query decoder.

    num_query: learnt queries; a square number
    num_points: sampling points a group, frame and query
    num_levels: levels of the pyramid that are sampled
    embed_dims: width of a query's features
    num_layers: passes of the one decoder layer
    num_groups: groups of channels that sample and mix for themselves
    num_heads: heads of the self-attention
    ffn_dim: inner width of the feed-forward layers
    mixing_out_points: points that mixing makes of the sampled ones
    code_size: numbers that describe a box; always 10
    dropout: share of activations left out in training
    pc_range: x, y, z low, then high, m, in the reference frame, that queries live in
    decode: from outputs to boxes
    proposals: what the small variants add to the published method
    """

    num_query: int = 900
    num_points: int = 4
    num_levels: int = 4
    embed_dims: int = 256
    num_layers: int = 6
    num_groups: int = 4
    num_heads: int = 8
    ffn_dim: int = 512
    mixing_out_points: int = 128
    code_size: int = CODE_SIZE
    dropout: float = 0.1
    pc_range: tuple[float, float, float, float, float, float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    proposals: ProposalsConfig = field(default_factory=ProposalsConfig)

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        side = math.isqrt(max(self.num_query, 0))
        if self.num_query < 1 or side**2 != self.num_query:
            raise ConfigError(f"head.num_query ({self.num_query}) must be a square number, such as {side**2}")
        check_positive(self, "head", (*SIZES, "num_layers", "mixing_out_points"))
        check_share("head.dropout", self.dropout)
        check_box("head.pc_range", self.pc_range)
        if self.code_size != CODE_SIZE:
            raise ConfigError(f"head.code_size ({self.code_size}) must be {CODE_SIZE}")


@dataclass(frozen=True)
class SparseBEVRecipe:
    """How the decoder is trained.

    denoising_groups: noisy copies of every known box, which are queries beside the learnt ones; 0: none
    proposals: how the additions of the small variants are trained
    """

    denoising_groups: int = 10
    proposals: ProposalsRecipe = field(default_factory=ProposalsRecipe)

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.denoising_groups < 0:
            raise ConfigError("training.family.denoising_groups must not be negative")
