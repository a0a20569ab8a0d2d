import copy

import pytest
import torch

from bev_perception.config import BackboneConfig
from bev_perception.models.backbones import build_backbone


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_backbone(BackboneConfig("vovnet", 99))


def test_outputs(model):
    with torch.inference_mode():
        maps = model.eval()(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, c, 16 >> i, 24 >> i) for i, c in enumerate(model.out_channels)]
    assert all(0.01 < m.std() < 100 for m in maps)  # fresh weights neither die out nor blow up


def test_training_keeps_the_statistics_and_reaches_every_weight(model):
    before = copy.deepcopy(dict(model.named_buffers()))
    torch.nn.ModuleList([model]).train()
    sum(m.mean() for m in model(torch.randn(1, 3, 32, 32))).backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()
