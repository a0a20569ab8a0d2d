"""Steps that fp16 leaves out because gradients overflow: counted, and an error where training no longer moves."""

from __future__ import annotations

import torch

from bev_perception.training.state import TrainingError

#: steps left out one after another, and the factor on the loss, that say that nothing is learnt any more
MOST_IN_A_ROW, SMALLEST_SCALE = 20, 1.0


class SkippedSteps:
    """Updates a GradScaler and counts the steps that it skipped.

    count: skipped steps of this run; None for a scaler that is not enabled.
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        """Keep the scaler."""
        self._scaler = scaler
        self._in_a_row = 0
        self.count: int | None = 0 if scaler.is_enabled() else None

    def update(self) -> None:
        """Update the scaler after its step.  Raises TrainingError if training no longer moves."""
        before = self._scaler.get_scale()
        self._scaler.update()
        scale = self._scaler.get_scale()
        if self.count is None or scale >= before:  # it falls after a step that was skipped, and only then
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
