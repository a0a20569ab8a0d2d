"""What the house asks of a model, whatever its family."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from bev_perception.config import VariantConfig
from bev_perception.models.memory import E, Entry, Memory
from bev_perception.types import Boxes3D, FrameError, Limits, ModelInput, Occupancy

#: What an encoder makes of a frame's images, by name: "levels" is the pyramid, "finite" one bool tensor that says
#: whether all of it is finite. A family may add what else it needs of the encoder.
Encoded = Mapping[str, tuple[Tensor, ...]]

#: a family's own outputs, a frozen dataclass of tensors
Out = TypeVar("Out")


class NotFiniteError(FrameError):
    """What a model computes, or the pose that it computes with, holds NaN or infinity: it means nothing."""


@dataclass(frozen=True)
class Perception:
    """What a model sees, in its reference frame at the frame's stamp; None where it does not say."""

    boxes: Boxes3D | None = None
    occupancy: Occupancy | None = None


@dataclass(frozen=True)
class Prediction(Generic[Out, E]):
    """What a model makes of one frame.

    outputs: for the model's `decode`
    entry: what to remember of the frame
    carried: what goes on to the next frame, remembered or not
    """

    outputs: Out
    entry: E
    carried: Any = None


class Model(nn.Module):
    """The base of every variant's network. The batch is 1.

    config: the variant's
    encoder_parts: names of the submodules that encode images; variants in which they are equal share them
    training_only: names of the submodules that training alone uses
    """

    config: VariantConfig
    encoder_parts: Sequence[str] = ()
    training_only: Sequence[str] = ()

    @abstractmethod
    def encode(self, inputs: ModelInput) -> Encoded:
        """Return what the encoder makes of the images; missing cameras give zeros."""

    @abstractmethod
    def predict(
        self, encoded: Encoded, history: Sequence[Any | None], inputs: ModelInput, carried: Any
    ) -> Prediction[Any, Any]:
        """Return what the frame shows.

        history: entries of the other frames that the variant looks at, in the order of config.frames.offsets; None
        stands for the current frame
        carried: what the prediction before this one has handed on; None at first
        """

    @abstractmethod
    def remember(self, encoded: Encoded, history: Sequence[Any | None], inputs: ModelInput) -> Entry:
        """Return what to remember of a frame, without predicting."""

    @abstractmethod
    def decode(self, outputs: Any, limits: Limits) -> Perception:
        """Return the outputs as boxes, occupancy or both, in the model's reference frame.

        Raises NotFiniteError for outputs that hold NaN or infinity, or come of such features.
        """

    @abstractmethod
    def new_memory(self, interval: float) -> Memory[Any]:
        """Return an empty memory of frames that are remembered every `interval` s."""


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Return whether all numbers are finite, as a bool tensor [] on their device: no transfer, no wait.

    A sum is NaN or infinite as soon as one summand is, and costs one pass over the data.
    """
    return torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors]).isfinite().all()
