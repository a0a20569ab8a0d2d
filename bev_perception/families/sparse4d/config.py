"""The settings of Sparse4D (Lin et al., 2022 and 2023), versions 1 to 3."""

from __future__ import annotations

from dataclasses import dataclass, field

from bev_perception.strict import ConfigError, check_positive, check_share

#: what a variant remembers of past frames: their feature maps (version 1) or their instances (versions 2 and 3)
MAPS, INSTANCES = "maps", "instances"
#: settings of the head that must be positive
SIZES = ("num_anchor", "num_layers", "num_levels", "embed_dims", "num_groups", "num_heads", "ffn_dim", "learned_points")


@dataclass(frozen=True)
class DecodeConfig:
    """From outputs to boxes.

    max_num: the most boxes
    score_threshold: lowest class score of a box; 0: all boxes. With `quality`, the final score of a box is its class
        score times its centerness, so it may be lower
    track_threshold: lowest class score of a box that bears a track id. In `eval`, K is the number of boxes with a class
        score of at least this; the K boxes with the highest final scores keep their track id (the published rule)
    """

    max_num: int = 300
    score_threshold: float = 0.0
    track_threshold: float = 0.2

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.max_num < 1:
            raise ConfigError(f"head.decode.max_num ({self.max_num}) must be positive")
        for name in ("score_threshold", "track_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"head.decode.{name} ({getattr(self, name)}) must lie in 0..1")


@dataclass(frozen=True)
class Sparse4DHeadConfig:
    """The instances and their decoder.

    temporal: "instances" (versions 2 and 3): the best instances of the past frame go on into this one; each camera's
        matrix is encoded. "maps" (version 1): every stage samples the feature maps of `frames.past` frames as well
    num_anchor: instances
    num_temporal: instances that go on into the next frame; with "instances" only
    decay: factor on the confidence of an instance from frame to frame; with "instances" only
    num_layers: decoder stages
    num_levels: levels of the pyramid that are sampled
    embed_dims: width of an instance's feature
    num_groups: groups of channels with sampling weights of their own
    num_heads: heads of the attentions
    ffn_dim: inner width of the feed-forward layers
    learned_points: key points of a box that each instance places itself, besides the seven fixed ones
    decoupled_attention: whether feature and encoded box are concatenated, not added, in the attentions, and the parts
        of an encoded box likewise (version 3)
    quality: whether the centerness and yawness of a box are predicted (version 3)
    track_ids: whether instances bear ids (version 3)
    swap_projected_yaw: whether moving a box of a past frame to this one swaps sine and cosine of its yaw; the published
        weights of version 3 were trained this way, and work no other way
    depth_levels: levels of the pyramid, finest first, whose depth is learnt beside; with "instances" only
    cameras: number of cameras that the sampling weights are tied to; with "maps" only
    max_distance: m, horizontally, of the boxes that it learns to see
    dropout: share of activations left out in training, in attentions and feed-forward layers
    point_dropout: share of sampled points left out in training, per camera; with "instances" only
    decode: from outputs to boxes
    """

    temporal: str = INSTANCES
    num_anchor: int = 900
    num_temporal: int = 600
    decay: float = 0.6
    num_layers: int = 6
    num_levels: int = 4
    embed_dims: int = 256
    num_groups: int = 8
    num_heads: int = 8
    ffn_dim: int = 1024
    learned_points: int = 6
    decoupled_attention: bool = False
    quality: bool = False
    track_ids: bool = False
    swap_projected_yaw: bool = False
    depth_levels: int = 3
    cameras: int = 6
    max_distance: float = 55.0
    dropout: float = 0.1
    point_dropout: float = 0.15
    decode: DecodeConfig = field(default_factory=DecodeConfig)

    def __post_init__(self) -> None:
        """Check the values that a type cannot."""
        if self.temporal not in (MAPS, INSTANCES):
            raise ConfigError(f"head.temporal is {self.temporal!r}; it must be {MAPS!r} or {INSTANCES!r}")
        check_positive(self, "head", (*SIZES, "cameras", "max_distance"))
        check_share("head.dropout", self.dropout)
        check_share("head.point_dropout", self.point_dropout)
        if self.temporal == MAPS and (self.decoupled_attention or self.quality or self.track_ids):
            raise ConfigError(
                "head: decoupled_attention, quality and track_ids need temporal 'instances'; set them to false"
            )
        if not 0 <= self.depth_levels <= self.num_levels:
            raise ConfigError(f"head.depth_levels ({self.depth_levels}) must lie in 0..num_levels")
        if self.recurrent and not 0 < self.num_temporal < self.num_anchor:
            raise ConfigError(f"head.num_temporal ({self.num_temporal}) must be positive and less than num_anchor")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"head.decay ({self.decay}) must lie in 0..1")
        if self.embed_dims % 8:
            raise ConfigError(f"head.embed_dims ({self.embed_dims}) must be a multiple of 8")

    @property
    def recurrent(self) -> bool:
        """Whether instances go on from frame to frame."""
        return self.temporal == INSTANCES
