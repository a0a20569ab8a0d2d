import torch

from bev_perception.config import NeckConfig
from bev_perception.models.necks import build_neck


def test_extra_levels():
    maps = [torch.randn(1, 4, 8, 12), torch.randn(1, 6, 4, 6)]
    subsampled, convolved = (
        build_neck(NeckConfig("fpn", 5, 4, extra), (4, 6)) for extra in ("subsample", "convolution")
    )
    assert len(subsampled.fpn_convs) == 2 and len(convolved.fpn_convs) == 4
    shapes = [(1, 5, 8, 12), (1, 5, 4, 6), (1, 5, 2, 3), (1, 5, 1, 2)]
    levels = subsampled(maps)
    assert [tuple(level.shape) for level in levels] == shapes
    assert torch.equal(levels[2], levels[1][..., ::2, ::2])
    levels = convolved(maps)
    assert [tuple(level.shape) for level in levels] == shapes
    assert torch.equal(levels[3], convolved.fpn_convs[3](levels[2]))
