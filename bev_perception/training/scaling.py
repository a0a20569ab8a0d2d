"""Skipped steps of fp16 training: counted, and an error if training no longer makes progress."""

from __future__ import annotations

import torch

from bev_perception.training.state import TrainingError

#: skipped steps in a row that end training
MOST_IN_A_ROW = 20
#: loss scale below which a skipped step ends training
SMALLEST_SCALE = 1.0


class SkippedSteps:
    """Updates a GradScaler and counts the steps that it skipped.

    count: number of skipped steps of this run; None if the scaler is disabled.
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        """Keep the scaler."""
        self._scaler = scaler
        self._in_a_row = 0
        self.count: int | None = 0 if scaler.is_enabled() else None

    def update(self) -> None:
        """Update the scaler after a step.

        Raises TrainingError if too many steps in a row were skipped or the scale is too small.
        """
        before = self._scaler.get_scale()
        self._scaler.update()
        scale = self._scaler.get_scale()
        if self.count is None or scale >= before:  # the scale falls after a skipped step, and only then
            self._in_a_row = 0
            return
        self.count += 1
        self._in_a_row += 1
        if self._in_a_row >= MOST_IN_A_ROW or scale < SMALLEST_SCALE:
            raise TrainingError(
                f"the gradients overflow fp16: {self._in_a_row} steps in a row were skipped, and the loss scale has "
                f"fallen to {scale:g}; train with precision bf16 or fp32, or with a lower lr, starting (init) from the "
                "weights saved last"
            )
