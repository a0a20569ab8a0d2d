"""Backbones with their pyramids against the published reference."""

import numpy as np
import pytest
import torch

from bev_perception.config import BackboneConfig
from bev_perception.models.backbones import build_backbone
from bev_perception.models.necks import FPN

from .cases import close, parametrize, subsample


def reason_to_skip(case):
    if case.info["system"] != "backbone":
        return ""
    if case.config["type"] != "ResNet":
        return f"the backbone {case.config['type']} is not built yet"
    return None


class BackboneWithNeck(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.img_backbone = build_backbone(BackboneConfig("resnet", config["depth"]))
        fpn = config["fpn"]
        assert list(self.img_backbone.out_channels) == fpn["in_channels"]
        self.img_neck = FPN(self.img_backbone.out_channels, fpn["out_channels"], fpn["num_outs"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@parametrize(reason_to_skip)
def test_backbone_and_pyramid(case, dtype):
    model = BackboneWithNeck(case.config)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == {k: s for k, (s, _) in case.keys.items()}
    case.load_weights(model)
    model = model.to(dtype).eval()
    shape = case.config["input_shape"]
    images = 10 * (case.fill("input.img", (int(np.prod(shape)),)).astype(np.float64) - 1).reshape(shape)
    with torch.inference_mode():
        maps = model.img_backbone(torch.from_numpy(images).to(dtype))
        levels = model.img_neck(maps)
    found = {f"bb{i}": x for i, x in enumerate(maps)} | {f"fpn{i}": x for i, x in enumerate(levels)}
    assert found.keys() == case.outputs.keys()
    atol, rtol = (2e-6, 2e-6) if dtype == torch.float64 else (case.info["tolerance"][k] for k in ("atol", "rtol"))
    wrong = {}
    for name, (wanted, description) in case.outputs.items():
        problem = close(subsample(found[name], description), wanted, atol, rtol)
        if problem:
            wrong[name] = problem
    assert not wrong
