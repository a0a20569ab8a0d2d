"""What of a model can be trained alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bev_perception.config import TrainingConfig
from bev_perception.supervision.step import TrainingStep


@dataclass(frozen=True)
class TrainedPart:
    """A part of a model that can be trained, and on what.

    step: makes the step from batch to losses of a model, its recipe and a precision
    kept: names of the model's submodules that stay as they are
    newest_only: whether the data need only hold the newest frame
    encoded_once: whether backbone and neck stay as they are, too, so that every image is encoded once
    leaves_out: whether the step computes nothing with some of what could learn
    """

    step: Callable[[Any, TrainingConfig, str], TrainingStep]
    kept: tuple[str, ...] = ()
    newest_only: bool = False
    encoded_once: bool = False
    leaves_out: bool = False
