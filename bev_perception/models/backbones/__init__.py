"""Image backbones: images [B, 3, H, W] to a list of feature maps, whose channels are in the attribute out_channels."""

from __future__ import annotations

from collections.abc import Callable

from bev_perception.config import BackboneConfig, ConfigError
from bev_perception.models.backbones.eva02 import EVA02
from bev_perception.models.backbones.resnet import ResNet
from bev_perception.models.backbones.swin import SwinTransformer
from bev_perception.models.backbones.vovnet import VoVNet

Backbone = ResNet | VoVNet | EVA02 | SwinTransformer


def build_backbone(config: BackboneConfig) -> Backbone:
    """Build the backbone that `config` names, with fresh weights.

    Raises ConfigError for a type or depth that does not exist.
    """
    builders: dict[str, Callable[[], Backbone]] = {
        "resnet": lambda: ResNet(config),
        "vovnet": lambda: VoVNet(config.depth),
        "eva02": lambda: EVA02(config.depth, config.eva02),
        "swin": lambda: SwinTransformer(config.swin, config.first_level, config.with_first),
    }
    if config.type not in builders:
        raise ConfigError(f"unknown backbone type {config.type!r}; known: {', '.join(builders)}")
    return builders[config.type]()
