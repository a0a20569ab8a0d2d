"""Swin transformers of all kinds, block by block, against the published reference."""

import re

import numpy as np
import torch

from bev_perception.models.backbones import build_backbone

from .cases import assert_official_keys, backbone_of, close, numbers, parametrize, subsample


def reason_to_skip(case):
    return None if str(case.config.get("type", "")).startswith("SwinTransformer") else ""


def images_of(case):
    formula = re.search(r"fill\('([^']+)',\(([\d, ]+)\),seed\)\*sqrt\(3\*H\*W\)", case.info["inputs"]["images"])
    shape = tuple(int(n) for n in numbers(formula[2]))
    return case.fill(formula[1], shape).astype(np.float64) * np.sqrt(np.prod(shape[1:]))


def run(backbone, images):
    """Everything that a case may ask for, by its name there."""
    found = {}

    def keep(name, tokens):
        found[name] = tokens.flatten(1, 2) if tokens.ndim == 4 else tokens

    hooks = [backbone.patch_embed.norm.register_forward_hook(lambda m, a, out: keep("patch_embed", out))]
    for i, stage in enumerate(backbone.stages):
        for k, block in enumerate(stage["blocks"]):
            hooks.append(block.register_forward_hook(lambda m, a, out, n=f"stage{i}.block{k}": keep(n, out)))
        if i < 3:
            name = f"stage{i}.downsample"
            hooks.append(stage["downsample"].register_forward_hook(lambda m, a, out, n=name: keep(n, out)))
    with torch.inference_mode():
        maps = backbone(images)
        first = backbone.first_map(images)
    for hook in hooks:
        hook.remove()
    if backbone.with_first:
        found["stereo_feat"], *maps = maps
        torch.testing.assert_close(found["stereo_feat"], first, rtol=0, atol=0)
    return found | {f"out_stage{i}": x for i, x in enumerate(maps, start=backbone.first_level)}


@parametrize(reason_to_skip, slow=lambda case: True)
def test_swin(case):
    model = torch.nn.ModuleDict({"img_backbone": build_backbone(backbone_of(case.config))})
    assert_official_keys(model, case.keys)
    case.load_weights(model, constants=("relative_position_index",))
    images = torch.from_numpy(images_of(case))
    wrong = {}
    for dtype in (torch.float64, torch.float32):
        found = run(model.to(dtype).eval()["img_backbone"], images.to(dtype))
        for name, (wanted, description) in case.outputs.items():
            atol, rtol = (3e-6, 1e-6) if dtype == torch.float64 else (max(1e-4, 20 * description["f32_err"]), 1e-4)
            problem = close(subsample(found[name].numpy(), description), wanted, atol, rtol)
            if problem:
                wrong[name, dtype] = problem
    assert not wrong
