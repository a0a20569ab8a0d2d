"""Image backbones: [B, 3, H, W] to a list of feature maps; the attribute `out_channels` says how wide they are."""

from __future__ import annotations

from bev_perception.config import BackboneConfig, ConfigError
from bev_perception.models.backbones.resnet import ResNet


def build_backbone(config: BackboneConfig) -> ResNet:
    """Build the backbone that `config` names, with fresh weights.

    Raises ConfigError for a type or depth that does not exist.
    """
    builders = {"resnet": lambda: ResNet(config.depth)}
    if config.type not in builders:
        raise ConfigError(f"unknown backbone type {config.type!r}; known: {', '.join(builders)}")
    return builders[config.type]()
