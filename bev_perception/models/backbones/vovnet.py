"""VoVNet (Lee and Park, CVPR 2020) with one-shot aggregation and effective squeeze-and-excitation: V-99-eSE.

Parameters are named as in the official checkpoints, slashes included.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bev_perception.config import ConfigError
from bev_perception.models.backbones.fixed_norm import FixedNormModule

#: depth -> number of aggregation modules in each of the four stages
_DEPTHS: dict[int, tuple[int, int, int, int]] = {99: (1, 3, 9, 3)}
_STEM = ((64, 2), (64, 1), (128, 2))  # width and stride of the stem's convolutions
_INNER_WIDTHS = (128, 160, 192, 224)
_OUT_CHANNELS = (256, 512, 768, 1024)
_CONVS_A_MODULE = 5


def _conv(name: str, channels: tuple[int, int], size: int = 3, stride: int = 1) -> OrderedDict[str, nn.Module]:
    in_channels, out_channels = channels
    return OrderedDict(
        {
            f"{name}/conv": nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False),
            f"{name}/norm": nn.BatchNorm2d(out_channels),
            f"{name}/relu": nn.ReLU(inplace=True),
        }
    )


class SqueezeExcitation(nn.Module):
    """Scale every channel by a gate computed from the means of all channels: [B, C, h, w] -> [B, C, h, w]."""

    def __init__(self, channels: int) -> None:
        """Build the gate."""
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled maps."""
        return x * F.hardsigmoid(self.fc(x.mean(dim=(2, 3), keepdim=True)))


class AggregationModule(nn.Module):
    """Five 3x3 convolutions in a row, all of whose outputs are concatenated with the input and mixed by a 1x1 one.

    Maps [B, in, h, w] to [B, out, h, w].

    shortcut: whether to add the input to the output
    """

    def __init__(self, name: str, in_channels: int, width: int, out_channels: int, shortcut: bool) -> None:
        """Build the module; the names of its layers begin with `name`."""
        super().__init__()
        widths = (in_channels, *[width] * _CONVS_A_MODULE)
        self.layers = nn.ModuleList(
            nn.Sequential(_conv(f"{name}_{i}", (widths[i], widths[i + 1]))) for i in range(_CONVS_A_MODULE)
        )
        self.concat = nn.Sequential(_conv(f"{name}_concat", (sum(widths), out_channels), size=1))
        self.ese = SqueezeExcitation(out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the module's output."""
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        joined = self.ese(self.concat(torch.cat(outputs, dim=1)))
        return joined + x if self.shortcut else joined


class VoVNet(FixedNormModule):
    """A VoVNet without its classifier.

    depth: 99
    out_channels: channels of the four outputs

    Batch norm uses its stored statistics in evaluation and in training, unless learns_statistics; its weights and
    biases can be trained.

    Raises ConfigError for another depth.
    """

    def __init__(self, depth: int) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        if depth not in _DEPTHS:
            raise ConfigError(
                f"backbone: there is no VoVNet of depth {depth}; known depths: {', '.join(map(str, _DEPTHS))}"
            )
        self.out_channels = _OUT_CHANNELS
        self.stem = nn.Sequential()
        channels = 3
        for i, (width, stride) in enumerate(_STEM, start=1):
            for name, module in _conv(f"stem_{i}", (channels, width), stride=stride).items():
                self.stem.add_module(name, module)
            channels = width
        stages = []
        sizes = zip(_DEPTHS[depth], _INNER_WIDTHS, _OUT_CHANNELS, strict=True)
        for number, (count, width, out_channels) in enumerate(sizes, start=2):
            stage = nn.Sequential()
            if number > 2:
                stage.add_module("Pooling", nn.MaxPool2d(3, stride=2, ceil_mode=True))
            for i in range(1, count + 1):
                name = f"OSA{number}_{i}"
                stage.add_module(name, AggregationModule(name, channels, width, out_channels, shortcut=i > 1))
                channels = out_channels
            stages.append(stage)
        self.stage2, self.stage3, self.stage4, self.stage5 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.train()

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that detectors keep frozen as pretrained: the stem and the first stage."""
        return [*self.stem.parameters(), *self.stage2.parameters()]

    def blocks(self) -> list[nn.Module]:
        """Return the blocks in order; training may recompute their activations to save memory."""
        stages = (self.stage2, self.stage3, self.stage4, self.stage5)
        return [module for stage in stages for module in stage if isinstance(module, AggregationModule)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return four maps [B, out_channels[i], H / 2^(i+2), W / 2^(i+2)] of images [B, 3, H, W]."""
        x = self.stem(images)
        outputs = []
        for stage in (self.stage2, self.stage3, self.stage4, self.stage5):
            x = stage(x)
            outputs.append(x)
        return outputs
