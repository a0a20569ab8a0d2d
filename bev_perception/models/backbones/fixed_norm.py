"""Batch norm as detectors fine-tune it: trained affine weights over the statistics of the pretraining."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Self = TypeVar("Self", bound="FixedNormModule")


class FixedNormModule(nn.Module):
    """A module whose batch norms use their stored statistics in evaluation and in training.

    learns_statistics: set it to train without a pretraining; batch norms then are as usual.
    """

    learns_statistics = False

    def train(self: Self, mode: bool = True) -> Self:
        """Set the mode of everything but the batch norms."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not self.learns_statistics:
                module.eval()
        return self
