"""Parameter groups and the learning rate."""

import math

import pytest
from torch import nn

from bev_perception.families.catalog import build_model
from bev_perception.families.variants import load_variant
from bev_perception.supervision.step import freeze
from bev_perception.training.optimizing import parameter_groups, schedule

from .kit import small_config, small_occupancy_config


def test_schedule_with_drops():
    recipe = small_occupancy_config(epochs=24, lr_drop_epochs=(12, 22), lr_drop=0.2, warmup_steps=500).training
    assert schedule(recipe, 0, 1000, 24) == pytest.approx(1 / 3)
    assert [schedule(recipe, 1000 * epoch + 500, 1000, 24) for epoch in (0, 11, 12, 21, 22, 23)] == pytest.approx(
        [1, 1, 0.2, 0.2, 0.04, 0.04]
    )
    assert [schedule(recipe, 1000 * epoch + 500, 1000, 12) for epoch in (5, 6, 10, 11)] == pytest.approx(
        [1, 0.2, 0.2, 0.04]
    )


def test_schedule():
    recipe = load_variant("r50_nuimg_704x256").training
    assert schedule(recipe, 0, 1000, 24) == pytest.approx(1 / 3)
    assert schedule(recipe, 250, 1000, 24) == pytest.approx(2 / 3)
    assert schedule(recipe, 500, 1000, 24) == 1.0
    assert schedule(recipe, 12 * 1000, 1000, 24) == pytest.approx(1e-3 + (1 - 1e-3) / 2)
    assert schedule(recipe, 23 * 1000, 1000, 24) == pytest.approx(
        1e-3 + 0.5 * (1 - 1e-3) * (1 + math.cos(math.pi * 23 / 24))
    )


def test_parameter_groups():
    config = small_config(backbone_lr=0.4)
    model = build_model(config)
    freeze(model, config.training.encoder)
    groups = {group["lr_factor"]: group for group in parameter_groups(model, config.training, 1e-3)}
    assert set(groups) == {0.4, 0.1, 1.0}
    assert groups[0.4]["lr"] == pytest.approx(4e-4)
    assert len(groups[0.1]["params"]) == 2
    assert sum(len(g["params"]) for g in groups.values()) == sum(p.requires_grad for p in model.parameters())


def test_schedule_by_steps():
    recipe = small_config(epochs=4, cosine="step", warmup_steps=0).training
    half = 1e-3 + (1 - 1e-3) / 2
    assert schedule(recipe, 200, 100, 4) == pytest.approx(half)
    assert schedule(recipe, 199, 100, 4) > half > schedule(recipe, 201, 100, 4)


class Layered(nn.Module):
    """A backbone of three layers, 0 to 2."""

    layer_count = 3

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])

    def layer_of(self, name):
        return int(name.split(".")[1])


def test_early_layers_learn_slowly_and_vectors_do_not_decay():
    recipe = small_config(layer_decay=0.5, backbone_lr=1.0, weight_decay=0.1).training
    model = nn.ModuleDict({"img_backbone": Layered(), "head": nn.Linear(2, 2)})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_factor"], group["weight_decay"])
        for group in parameter_groups(model, recipe, 1e-3)
        for parameter in group["params"]
    }
    assert found == {
        **{f"img_backbone.layers.{i}.weight": (0.5 ** (3 - i), 0.1) for i in range(3)},
        **{f"img_backbone.layers.{i}.bias": (0.5 ** (3 - i), 0.0) for i in range(3)},
        "head.weight": (1.0, 0.1),
        "head.bias": (1.0, 0.0),
    }


def test_parameter_groups_of_occupancy():
    config = small_occupancy_config()
    model = build_model(config)
    freeze(model, config.training.encoder)
    groups = {group["lr_factor"]: group for group in parameter_groups(model, config.training, 1e-3)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    slow = {names[id(parameter)] for parameter in groups[0.1]["params"] if "img_backbone" not in names[id(parameter)]}
    layers = "pts_bbox_head.transformer.voxel_decoder.decoder_layers"
    assert slow == {f"{layers}.{i}.sampling.sampling_offset.{w}" for i in range(3) for w in ("weight", "bias")}
    fast = {names[id(parameter)] for parameter in groups[1.0]["params"]}
    assert "pts_bbox_head.transformer.decoder.decoder_layer.sampling.offset.weight" in fast
