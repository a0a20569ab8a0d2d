"""An exponential moving average of a model's weights (Polyak and Juditsky, SIAM J. Control Optim. 1992)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bev_perception.config import AveragingConfig


class WeightAverage:
    """The average of a model's weights and of the statistics of its norms.

    state: name -> average, for all that model.state_dict() holds; integers are those of the model.
    """

    def __init__(self, model: nn.Module, config: AveragingConfig) -> None:
        """Begin with the model's weights as they are."""
        self._model, self._config = model, config
        self.state = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the model's weights after `steps` steps of training."""
        updates = self._config.start + steps
        kept = self._config.decay * (1 - math.exp(-updates / self._config.warmup))
        for name, value in self._model.state_dict().items():
            average = self.state[name]
            if value.is_floating_point():
                average.mul_(kept).add_(value, alpha=1 - kept)
            else:
                average.copy_(value)

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from averages that were saved."""
        for name, average in self.state.items():
            average.copy_(state[name])
