"""Backbones with their pyramids against the published reference."""

import re

import numpy as np
import pytest
import torch

from bev_perception.config import NeckConfig
from bev_perception.families.variants import load_variant
from bev_perception.models.backbones import build_backbone
from bev_perception.models.backbones.eva02 import EVA02, PATCH, rotary_tables
from bev_perception.models.necks import build_neck

from .cases import assert_official_keys, backbone_of, close, numbers, parametrize, subsample


def reason_to_skip(case):
    if case.info["system"] != "backbone":
        return ""
    return None if backbone_of(case.config) else f"the backbone {case.config['type']} is not built yet"


class BackboneWithNeck(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.img_backbone = build_backbone(backbone_of(config))
        channels = self.img_backbone.out_channels
        fpn = config.get("fpn", {"in_channels": list(channels), "out_channels": channels[0], "num_outs": len(channels)})
        assert list(channels) == fpn["in_channels"]
        neck = NeckConfig("fpn" if "fpn" in config else "none", fpn["out_channels"], fpn["num_outs"])
        self.img_neck = build_neck(neck, channels)


def run(model, images):
    """Everything that a case may ask for, by its name there."""
    found = {}
    for i, block in enumerate(model.img_backbone.blocks() if isinstance(model.img_backbone, EVA02) else ()):
        block.register_forward_hook(lambda block, args, tokens, i=i: record_block(found, i, block, args[1], tokens))
    with torch.inference_mode():
        maps = model.img_backbone(images)
        levels = model.img_neck(maps)
    if levels is not maps:
        found |= {f"bb{i}": x for i, x in enumerate(maps)}
    return found | {f"fpn{i}": x for i, x in enumerate(levels)}


def record_block(found, i, block, tables, tokens):
    found[f"block{i}"] = tokens
    for part, table in zip(("cos", "sin"), tables, strict=True):
        found[f"rope.rope_{'win' if block.window else 'glb'}.freqs_{part}"] = table


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@parametrize(reason_to_skip)
def test_backbone_and_pyramid(case, dtype):
    model = BackboneWithNeck(case.config)
    assert_official_keys(model, case.keys)
    case.load_weights(model)
    model = model.to(dtype).eval()
    shape = case.config["input_shape"]
    images = 10 * (case.fill("input.img", (int(np.prod(shape)),)).astype(np.float64) - 1).reshape(shape)
    found = run(model, torch.from_numpy(images).to(dtype))
    assert found.keys() == case.outputs.keys()
    atol, rtol = (2e-6, 2e-6) if dtype == torch.float64 else (case.info["tolerance"][k] for k in ("atol", "rtol"))
    wrong = {}
    for name, (wanted, description) in case.outputs.items():
        problem = close(subsample(found[name], description), wanted, atol, rtol)
        if problem:
            wrong[name] = problem
    assert not wrong


@parametrize(lambda case: None if (case.path / "rope_samples.npz").exists() else "")
def test_rotary_tables_of_a_published_variant(case):
    variant = load_variant(case.info["variant"])
    config = variant.backbone.eva02
    grids = {
        "glb": ((variant.image.height // PATCH, variant.image.width // PATCH), config.trained_size // PATCH),
        "win": ((config.window, config.window), config.window),
    }
    samples = np.load(case.path / "rope_samples.npz")
    for name, (grid, trained) in grids.items():
        tables = rotary_tables(grid, trained, config.embed_dim // config.num_heads, torch.device("cpu"))
        rows, columns, *shape = numbers(re.search(rf"{name} (\[.*?\] of \[.*?\])", case.info["meaning"])[1])
        assert list(tables.shape) == [2, *shape]
        for part, table in zip(("cos", "sin"), tables, strict=True):
            wanted = samples[f"rope_{name}_{part}"]
            assert close(table[:: int(rows), :: int(columns)], wanted, atol=1e-7, rtol=0) is None
