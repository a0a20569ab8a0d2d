import pytest
import torch
import torch.nn.functional as F

from bev_perception.models.backbones.deformable import DeformableConv2d, deformable_convolution


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(x, offsets, factors, weight, stride):
    """Tap by tap and place by place, with each of the four corners looked up alone."""
    batch, _, height, width = x.shape
    out = torch.zeros(batch, len(weight), *offsets.shape[2:], dtype=x.dtype)
    for b in range(batch):
        for row in range(offsets.shape[2]):
            for column in range(offsets.shape[3]):
                for tap in range(9):
                    dy, dx = offsets[b, 2 * tap : 2 * tap + 2, row, column].tolist()
                    y, x0 = row * stride - 1 + tap // 3 + dy, column * stride - 1 + tap % 3 + dx
                    value = torch.zeros(x.shape[1], dtype=x.dtype)
                    for cy in (int(y // 1), int(y // 1) + 1):
                        for cx in (int(x0 // 1), int(x0 // 1) + 1):
                            if 0 <= cy < height and 0 <= cx < width:
                                value += x[b, :, cy, cx] * (1 - abs(y - cy)) * (1 - abs(x0 - cx))
                    out[b, :, row, column] += weight[:, :, tap // 3, tap % 3] @ value * factors[b, tap, row, column]
    return out


@pytest.mark.parametrize("stride, size", [(1, (4, 5)), (2, (4, 6)), (1, (1, 3))])
def test_as_by_hand(stride, size):
    out_size = [-(-s // stride) for s in size]
    args = random(2, 3, *size), 2 * random(2, 18, *out_size, seed=1), random(2, 9, *out_size, seed=2)
    weight = random(4, 3, 3, 3, seed=3)
    torch.testing.assert_close(
        deformable_convolution(*args, weight, stride), by_hand(*args, weight, stride), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_starts_as_half_a_convolution(stride):
    layer = DeformableConv2d(3, 4, stride)
    x = torch.randn(2, 3, 6, 8)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, stride=stride, padding=1) / 2, rtol=1e-4, atol=1e-5)


def test_gradcheck():
    leaves = [random(1, 2, 3, 4), random(1, 18, 3, 4, seed=1), random(1, 9, 3, 4, seed=2), random(2, 2, 3, 3, seed=3)]
    for leaf in leaves:
        leaf.requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: deformable_convolution(*args, 1), leaves)
