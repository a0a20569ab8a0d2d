"""ResNet (He et al., CVPR 2016) as detectors use it: four feature maps, batch norm with fixed statistics.

Parameters are named as in torchvision.
"""

from __future__ import annotations

from torch import Tensor, nn

from bev_perception.config import BackboneConfig, ConfigError
from bev_perception.models.backbones.deformable import DeformableConv2d
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

    def __init__(
        self, in_channels: int, width: int, stride: int, caffe: bool = False, deformable: bool = False
    ) -> None:
        """Build the block.

        caffe: whether the stride is in the first convolution, not in the 3x3 one
        deformable: whether the 3x3 convolution is deformable
        """
        super().__init__()
        out_channels = width * self.expansion
        first, middle = (stride, 1) if caffe else (1, stride)
        self.conv1 = _conv1x1(in_channels, width, first)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = DeformableConv2d(width, width, middle) if deformable else _conv3x3(width, width, middle)
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

    config: its depth is 10, 18, 50 or 101; see BackboneConfig for its other settings
    out_channels: channels of the outputs

    Batch norm uses its stored statistics in evaluation and in training, unless learns_statistics; its weights and
    biases can be trained, except in caffe's style.

    Raises ConfigError for another depth, and for settings that need bottlenecks where there are none.
    """

    def __init__(self, config: BackboneConfig) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        if config.depth not in _DEPTHS:
            raise ConfigError(
                f"backbone: there is no ResNet of depth {config.depth}; known depths: {', '.join(map(str, _DEPTHS))}"
            )
        bottlenecks, blocks = _DEPTHS[config.depth]
        self.caffe = config.style == "caffe"
        if not bottlenecks and (self.caffe or config.deformable_stages):
            raise ConfigError(
                f"backbone: a ResNet of depth {config.depth} has no bottlenecks, so it has neither caffe's style nor "
                "deformable_stages; remove them or choose depth 50 or 101"
            )
        expansion = (Bottleneck if bottlenecks else BasicBlock).expansion
        width = config.width
        widths = [width * 2**stage for stage in range(4)]
        first = [0] if config.with_first else []
        self.levels = first + list(range(config.first_level, 4))
        self.out_channels = tuple(widths[level] * expansion for level in self.levels)
        if config.patches:
            self.conv1 = nn.Conv2d(3, width, 4, stride=4, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if config.patches else nn.MaxPool2d(3, stride=2, padding=1)
        in_channels = width
        stages = []
        for stage, (stage_width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            layers: list[nn.Module] = []
            for i in range(count):
                stride = 2 if i == 0 and stage > 1 else 1
                if bottlenecks:
                    deformable = stage in config.deformable_stages
                    layers.append(Bottleneck(in_channels, stage_width, stride, self.caffe, deformable))
                else:
                    layers.append(BasicBlock(in_channels, stage_width, stride))
                in_channels = stage_width * expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self._initialise()
        self.train()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, DeformableConv2d):
                module.reset_offsets()
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
        """Return the parameters that detectors keep frozen as pretrained: the stem and the first stage.

        In caffe's style these are all batch norms too.
        """
        frozen = [p for part in (self.conv1, self.bn1, self.layer1) for p in part.parameters()]
        if self.caffe:
            later = (self.layer2, self.layer3, self.layer4)
            norms = [module for stage in later for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
            frozen += [p for norm in norms for p in norm.parameters()]
        return frozen

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
