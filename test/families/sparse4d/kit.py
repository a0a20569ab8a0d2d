"""Sparse4D small enough to be trained in a test, on the made-up nuScenes data."""

import dataclasses

from nuscenes_root import VERSION

from bev_perception.config import BackboneConfig, ImageConfig, NeckConfig
from bev_perception.data.records import open_split
from bev_perception.families.variants import load_variant
from bev_perception.training.dataset import NuScenesTraining

HEIGHT, WIDTH = 64, 160


def small_config(family=None, head=None, **training):
    """sparse4d_tiny made smaller still; arguments are settings of the recipe and of the head."""
    tiny = load_variant("sparse4d_tiny")
    recipe = dataclasses.replace(tiny.training.family, **(family or {}))
    settings = {"epochs": 1, "resize": (0.1, 0.12), "batch": 2, "warmup_steps": 2, "family": recipe} | training
    sizes = {"num_anchor": 24, "num_temporal": 16, "num_layers": 2, "embed_dims": 32, "num_groups": 2, "ffn_dim": 32}
    return dataclasses.replace(
        tiny,
        image=ImageConfig(HEIGHT, WIDTH),
        backbone=BackboneConfig("resnet", 10, width=16, first_level=1, patches=True),
        neck=NeckConfig("fpn", 32, 3),
        head=dataclasses.replace(tiny.head, **(sizes | (head or {}))),
        training=dataclasses.replace(tiny.training, **settings),
    )


def maps_config(**training):
    """The same of version 1, with two past frames."""
    config = small_config(**training)
    recipe = dataclasses.replace(
        config.training.family,
        sequences=dataclasses.replace(config.training.family.sequences, parts=0),
        denoising=dataclasses.replace(config.training.family.denoising, groups=0, remembered=0),
    )
    head = {"temporal": "maps", "quality": False, "track_ids": False, "decoupled_attention": False, "depth_levels": 0}
    return dataclasses.replace(
        config,
        frames=dataclasses.replace(config.frames, past=2),
        head=dataclasses.replace(config.head, **head),
        training=dataclasses.replace(config.training, key_frames=(1, 2), frames_with_gradient=1, family=recipe),
    )


def records_of(root):
    return open_split(root, VERSION, "mini_val")


def data_of(config, root):
    """The key frames as the command `train` reads them: without past frames where instances go on."""
    if config.head.recurrent:
        config = dataclasses.replace(config, frames=dataclasses.replace(config.frames, past=0))
    return NuScenesTraining(config, records_of(root))
