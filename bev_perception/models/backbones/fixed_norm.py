"""Batch norm for fine-tuning detectors: the affine weights are trained, the statistics stay those of pretraining."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Self = TypeVar("Self", bound="FixedNormModule")


class FixedNormModule(nn.Module):
    """A module whose batch norms use their stored statistics in training as well as in evaluation.

    learns_statistics: set it to True to train from scratch; batch norms then learn their statistics as usual
    """

    learns_statistics = False

    def train(self: Self, mode: bool = True) -> Self:
        """Set the mode of all submodules; batch norms stay in evaluation mode unless learns_statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)) and not self.learns_statistics:
                module.eval()
        return self
