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


@pytest.mark.parametrize(
    "depth, width, first_level, channels",
    [
        (10, 64, 0, (64, 128, 256, 512)),
        (18, 64, 0, (64, 128, 256, 512)),
        (50, 64, 0, (256, 512, 1024, 2048)),
        (10, 8, 1, (16, 32, 64)),
        (50, 8, 3, (256,)),
    ],
)
def test_outputs(depth, width, first_level, channels):
    model = build_backbone(BackboneConfig("resnet", depth, width, first_level)).eval()
    assert tuple(model.out_channels) == channels
    with torch.inference_mode():
        maps = model(torch.randn(2, 3, 64, 96))
    shapes = [(2, c, 16 >> i, 24 >> i) for i, c in enumerate(channels, start=first_level)]
    assert [tuple(m.shape) for m in maps] == shapes


def test_the_first_levels_are_left_out_and_nothing_else_changes():
    whole, later = (build_backbone(BackboneConfig("resnet", 10, 8, level)).eval() for level in (0, 2))
    later.load_state_dict(whole.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(later(images), whole(images)[2:], rtol=0, atol=0)


def test_batch_norms_learn_their_statistics_where_that_is_asked_for():
    model = build_backbone(BackboneConfig("resnet", 10, 8))
    model.learns_statistics = True
    before = copy.deepcopy(dict(model.named_buffers()))
    model.train()(torch.randn(2, 3, 64, 64))
    assert not any(torch.equal(b, before[name]) for name, b in model.named_buffers())
    after = copy.deepcopy(dict(model.named_buffers()))
    model.eval()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(b, after[name]) for name, b in model.named_buffers())


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


def test_style_and_deformable_stages():
    settings = {"style": "caffe", "deformable_stages": (3, 4)}
    plain, model = (BackboneConfig("resnet", 50, 8, **chosen) for chosen in ({}, settings))
    plain, model = build_backbone(plain), build_backbone(model)
    names = {name.partition(".conv_offset")[0] for name, _ in model.named_parameters() if "conv_offset" in name}
    assert names == {f"layer{stage}.{i}.conv2" for stage, count in ((3, 6), (4, 3)) for i in range(count)}
    strides = [[block.conv1.stride, block.conv2.stride] for block in (plain.layer2[0], model.layer2[0])]
    assert strides == [[(1, 1), (2, 2)], [(2, 2), (1, 1)]]
    assert model.layer3[0].conv1.stride == (2, 2) and model.layer3[0].conv2.stride == 1
    shapes = [tuple(level.shape) for level in model(torch.randn(1, 3, 64, 64))]
    assert shapes == [tuple(level.shape) for level in plain(torch.randn(1, 3, 64, 64))]


def test_batch_norms_of_caffes_style_are_frozen():
    model = build_backbone(BackboneConfig("resnet", 50, 8, style="caffe"))
    frozen = {id(p) for p in model.frozen_parameters()}
    trained = {name for name, p in model.named_parameters() if id(p) not in frozen}
    assert trained and all(name.startswith(("layer2", "layer3", "layer4")) for name in trained)
    assert not any(".bn" in name or "downsample.1" in name for name in trained)


@pytest.mark.parametrize("settings", [{"style": "caffe"}, {"deformable_stages": (4,)}])
def test_what_needs_bottlenecks_is_refused_without(settings):
    with pytest.raises(ConfigError, match="depth 18 has no bottlenecks"):
        build_backbone(BackboneConfig("resnet", 18, **settings))


@pytest.mark.parametrize("config, named", [(BackboneConfig("resnet", 34), "50"), (BackboneConfig("resnest"), "resnet")])
def test_an_unknown_backbone_is_refused(config, named):
    with pytest.raises(ConfigError, match=named):
        build_backbone(config)
