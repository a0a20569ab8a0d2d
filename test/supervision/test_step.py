"""What stays out of training computes as in inference."""

import dataclasses

import numpy as np
import pytest
import torch
from training.kit import CAMERAS, FRAMES, SIZE, small_config

from bev_perception.config import BackboneConfig, EVA02Config
from bev_perception.families.catalog import build_model
from bev_perception.supervision.step import encode_frames, freeze
from bev_perception.training.train import find_part

EVA02 = EVA02Config(embed_dim=64, num_heads=2, window=4, trained_size=96, drop_path=0.9)


def training_step(encoder, **recipe):
    neck = dataclasses.replace(small_config().neck, type="none", num_outs=5, out_channels=256)
    config = dataclasses.replace(
        small_config(encoder=encoder, **recipe), backbone=BackboneConfig("eva02", 4, eva02=EVA02)
    )
    config = dataclasses.replace(config, neck=neck, head=dataclasses.replace(config.head, embed_dims=256, num_levels=5))
    torch.manual_seed(0)
    model = build_model(config)
    freeze(model, encoder)
    return find_part(config, "all").step(model, config.training, "fp32")


def encode(step, seed):
    torch.manual_seed(seed)
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(1, FRAMES, CAMERAS, 3, *SIZE))).float()
    frames = encode_frames(step.model, images, step.recipe.frames_with_gradient)
    return [level.detach() for frame in frames for level in frame]


@pytest.mark.parametrize("frames_with_gradient", [0, 1])
def test_a_frozen_encoder_drops_no_paths(frames_with_gradient):
    step = training_step("frozen", frames_with_gradient=frames_with_gradient)
    expected = encode(step.eval(), 0)
    for seed in (1, 2):  # also once it has been told again
        step.train()
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(encode(step, seed), expected, strict=True))
    assert step.model.pts_bbox_head.training


def test_one_that_is_trained_drops_paths_also_in_its_frozen_blocks():
    """As in SparseBEV: drop path is linear over all blocks, whichever of them are frozen."""
    step = training_step("finetune")
    expected = encode(step.eval(), 0)
    assert not all(torch.equal(a, b) for a, b in zip(encode(step.train(), 1), expected, strict=True))
    assert all(module.training for module in step.model.img_backbone.modules() if "Block" in type(module).__name__)


def test_older_frames_without_gradient_leave_the_mode_as_it_was():
    step = training_step("finetune", frames_with_gradient=1).eval()
    encode(step, 0)
    assert not step.model.img_backbone.training
