import copy

import pytest
import torch

from bev_perception.config import BackboneConfig, ConfigError
from bev_perception.models.backbones import build_backbone


def with_random_statistics(model, seed=0):
    """Give the batch norms statistics as after training, so that they do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in ((module.weight, 0.5, 1.5), (module.running_var, 0.5, 1.5), (module.bias, -1, 1)):
                values.data = torch.empty_like(values).uniform_(low, high, generator=generator)
            module.running_mean = torch.empty_like(module.running_mean).uniform_(-1, 1, generator=generator)
    return model


@pytest.mark.parametrize("depth, channels", [(18, (64, 128, 256, 512)), (50, (256, 512, 1024, 2048))])
def test_outputs(depth, channels):
    model = build_backbone(BackboneConfig("resnet", depth)).eval()
    assert tuple(model.out_channels) == channels
    with torch.inference_mode():
        maps = model(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, c, 16 >> i, 24 >> i) for i, c in enumerate(channels)]


def test_batch_norms_keep_their_statistics_in_training():
    model = with_random_statistics(build_backbone(BackboneConfig("resnet", 18)))
    images = torch.randn(2, 3, 64, 64)
    before = copy.deepcopy(dict(model.named_buffers()))
    torch.nn.ModuleList([model]).train()
    assert model.training
    outputs = model(images)
    sum(m.sum() for m in outputs).backward()
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert model.layer4[1].bn2.weight.grad is not None
    torch.testing.assert_close(outputs, model.eval()(images))


@pytest.mark.parametrize("config, named", [(BackboneConfig("resnet", 34), "50"), (BackboneConfig("resnest"), "resnet")])
def test_an_unknown_backbone_is_refused(config, named):
    with pytest.raises(ConfigError, match=named):
        build_backbone(config)
