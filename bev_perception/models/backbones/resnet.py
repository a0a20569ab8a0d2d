"""ResNet (He et al., CVPR 2016) as detectors use it: four feature maps, batch norm with fixed statistics.

The stride of a bottleneck is in its 3x3 convolution; parameters are named as in torchvision.
"""

from __future__ import annotations

from torch import Tensor, nn

from bev_perception.config import ConfigError
from bev_perception.models.backbones.fixed_norm import FixedNormModule

#: depth -> (whether blocks are bottlenecks, number of blocks in each of the four stages)
_DEPTHS: dict[int, tuple[bool, tuple[int, int, int, int]]] = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
}


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, in, h, w] -> [B, width, h / stride, w / stride]."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        """Build the block."""
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu_()
        x = self.bn2(self.conv2(x))
        return x.add_(shortcut).relu_()


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: [B, in, h, w] -> [B, 4 * width, h / stride, w / stride]."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        """Build the block."""
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = _conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv1x1(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu_()
        x = self.bn2(self.conv2(x)).relu_()
        x = self.bn3(self.conv3(x))
        return x.add_(shortcut).relu_()


class ResNet(FixedNormModule):
    """A ResNet without its classifier.

    depth: 10, 18, 50 or 101
    width: channels of the stem and of the first stage; each later stage has twice as many as the one before
    first_level: first stage, of 0 to 3, whose output is returned
    patches: whether the stem splits the image into patches of 4x4 pixels, which costs less than overlapping 7x7 windows
        and a max pool (Liu et al., A ConvNet for the 2020s, CVPR 2022, section 2.2)
    out_channels: channels of the outputs

    Batch norm uses its stored statistics in evaluation and in training, unless learns_statistics; its weights and
    biases can be trained.

    Raises ConfigError for another depth.
    """

    def __init__(
        self, depth: int, width: int = 64, first_level: int = 0, patches: bool = False, with_first: bool = False
    ) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        if depth not in _DEPTHS:
            raise ConfigError(
                f"backbone: there is no ResNet of depth {depth}; known depths: {', '.join(map(str, _DEPTHS))}"
            )
        bottlenecks, blocks = _DEPTHS[depth]
        block = Bottleneck if bottlenecks else BasicBlock
        widths = [width * 2**stage for stage in range(4)]
        self.levels = ([0] if with_first else []) + list(range(first_level, 4))
        self.out_channels = tuple(widths[level] * block.expansion for level in self.levels)
        if patches:
            self.conv1 = nn.Conv2d(3, width, 4, stride=4, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if patches else nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = width
        stages = []
        for stage, (stage_width, count) in enumerate(zip(widths, blocks, strict=True)):
            layers: list[nn.Module] = []
            for i in range(count):
                layers.append(block(in_channels, stage_width, stride=2 if i == 0 and stage > 0 else 1))
                in_channels = stage_width * block.expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self._initialise()
        self.train()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # Scale the residual branches so that all blocks together multiply the variance by at most e; batch norm with
        # fixed statistics could not compensate for more. Starting at zero (Goyal et al., 2017) is worse: Adam leaves
        # zero in small steps, however steep the loss.
        share = len(self.blocks()) ** -0.5
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.constant_(module.bn3.weight, share)
            elif isinstance(module, BasicBlock):
                nn.init.constant_(module.bn2.weight, share)

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that detectors keep frozen as pretrained: the stem and the first stage."""
        return [p for part in (self.conv1, self.bn1, self.layer1) for p in part.parameters()]

    def blocks(self) -> list[nn.Module]:
        """Return the blocks in order; training may recompute their activations to save memory."""
        return [block for stage in (self.layer1, self.layer2, self.layer3, self.layer4) for block in stage]

    def first_map(self, images: Tensor) -> Tensor:
        """Return the first stage's map C2 of images [B, 3, H, W], without computing the others."""
        return self.layer1(self.maxpool(self.bn1(self.conv1(images)).relu_()))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps C2 to C5 of images [B, 3, H, W], without those that are not asked for.

        Map Ci is [B, channels, H / 2^i, W / 2^i].
        """
        x = self.first_map(images)
        outputs = [x]
        for stage in (self.layer2, self.layer3, self.layer4):
            x = stage(x)
            outputs.append(x)
        return [outputs[level] for level in self.levels]
