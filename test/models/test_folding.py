import copy
import dataclasses

import pytest
import torch
from torch import nn

from bev_perception.config import BackboneConfig
from bev_perception.evaluation.timing import made_up_key_frames
from bev_perception.families.catalog import build_model
from bev_perception.families.variants import load_variant
from bev_perception.models.backbones import build_backbone
from bev_perception.models.backbones.deformable import DeformableConv2d
from bev_perception.models.folding import fold_batch_norms
from bev_perception.sensing.preprocess import Preprocessor

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def stir(module, seed=0):
    """Give batch norms statistics and weights as after training."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, NORMS):
            for values, low, high in (
                (norm.running_mean, -0.5, 0.5),
                (norm.running_var, 0.5, 2.0),
                (norm.weight.data, 0.5, 1.0),
                (norm.bias.data, -0.3, 0.3),
            ):
                values.copy_(torch.rand(values.shape, generator=generator) * (high - low) + low)
    return module.eval()


def assert_close(folded, plain):
    assert len(folded) == len(plain) > 0
    for a, b in zip(folded, plain, strict=True):
        assert a.dtype == b.dtype and (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize(
    "config",
    [
        BackboneConfig("resnet", 18, width=16),
        BackboneConfig("resnet", 50, width=16),
        BackboneConfig("resnet", 50, width=16, style="caffe"),
        BackboneConfig("resnet", 50, width=16, deformable_stages=(3, 4)),
        BackboneConfig("vovnet", 99),
    ],
    ids=["basic", "bottleneck", "caffe", "deformable", "vovnet"],
)
@torch.inference_mode()
def test_backbones_compute_the_same(config):
    with torch.inference_mode(False):
        torch.manual_seed(0)
        plain = stir(build_backbone(config))
    folded = copy.deepcopy(plain)
    fold_batch_norms(folded)
    images = torch.randn(1, 3, 64, 96)
    assert_close(folded(images), plain(images))
    left = [name for name, module in folded.named_modules() if isinstance(module, NORMS)]
    deformable = [name for name, module in folded.named_modules() if isinstance(module, DeformableConv2d)]
    assert len(left) == len(deformable), "all that follow a convolution of PyTorch's are folded"


@pytest.mark.parametrize(
    "name", ["sparsebev_tiny", "sparseocc_tiny", "sparse4d_tiny", "bevdet_tiny", "bevdetocc_tiny", "bevdet-r50-4d-cbgs"]
)
@torch.inference_mode()
def test_families_compute_the_same(name):
    config = load_variant(name, ["image.width=352", "image.height=128"] if name == "bevdet-r50-4d-cbgs" else [])
    with torch.inference_mode(False):
        torch.manual_seed(0)
        plain = stir(build_model(config))
    folded = copy.deepcopy(plain)
    fold_batch_norms(folded)
    prepare = Preprocessor(config, torch.device("cpu"))
    inputs, _ = prepare(next(made_up_key_frames(1)))
    prepare.close()
    encoded, same = plain.encode(inputs), folded.encode(inputs)
    assert_close(same["levels"], encoded["levels"])
    outside = any(
        isinstance(module, NORMS) and path.split(".")[0] not in plain.encoder_parts
        for path, module in plain.named_modules()
    )
    if outside:  # the same features for both, as choices of the best would multiply the least difference
        history = [None] * len(config.frames.offsets)
        a, b = (model.predict(encoded, history[1:], inputs, None).outputs for model in (folded, plain))
        assert_close(tensors(a), tensors(b))


def tensors(outputs):
    """All tensors of floats in an output, which is made of dataclasses and tuples."""
    if isinstance(outputs, torch.Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if dataclasses.is_dataclass(outputs):
        outputs = [getattr(outputs, field.name) for field in dataclasses.fields(outputs)]
    return [tensor for part in outputs or () for tensor in tensors(part)]


def test_training_is_refused():
    module = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    with pytest.raises(ValueError, match="inference only"):
        fold_batch_norms(module)


def test_a_norm_of_something_else_stays():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Conv2d(1, 1, 1), nn.ReLU(), nn.BatchNorm2d(1)).eval()
    fold_batch_norms(module)
    assert [type(part) for part in module][1::3] == [nn.BatchNorm1d, nn.BatchNorm2d]
