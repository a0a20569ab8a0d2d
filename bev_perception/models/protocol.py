"""The interface of a model, whatever its family."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from bev_perception.config import VariantConfig
from bev_perception.models.memory import E, Entry, Memory
from bev_perception.types import Boxes3D, FrameError, Limits, ModelInput, Occupancy

#: An encoder's outputs for a frame's images, by name: "levels" is the feature pyramid, "finite" a single bool tensor []
#: that is true if all of the pyramid is finite. A family may add further outputs of its encoder.
Encoded = Mapping[str, tuple[Tensor, ...]]

#: a family's own outputs, a frozen dataclass of tensors
Out = TypeVar("Out")


class NotFiniteError(FrameError):
    """A model's features, outputs or input pose hold NaN or infinity, so the frame has no valid result."""

    cause = "not finite"


@dataclass(frozen=True)
class Perception:
    """A model's result, in its reference frame at the frame's stamp.

    boxes: None for a model that detects no boxes
    occupancy: None for a model that predicts no occupancy
    """

    boxes: Boxes3D | None = None
    occupancy: Occupancy | None = None


@dataclass(frozen=True)
class Prediction(Generic[Out, E]):
    """A model's prediction for one frame.

    outputs: raw outputs, for the model's `decode`
    entry: what to remember of the frame
    carried: state for the next frame, passed on whether this frame is remembered or not
    """

    outputs: Out
    entry: E
    carried: Any = None


class Model(nn.Module):
    """Base class of every variant's network. The batch is 1.

    config: settings of the variant
    encoder_parts: names of the submodules that encode images; variants whose encoder parts are equal share them
    training_only: names of the submodules that only training uses
    for_benchmark: whether it gets key frames only, each of which continues from the one before, and gives track ids by
        the published rule; set before the first frame
    stages: the parts that benchmarks tell apart: a name, and the paths of its submodules; the rest is the "head"
    engine: what computes `image_maps` in place of PyTorch, with the same results (pipeline/engines); None: nothing does
    exposures: for `recompute` as published: the cameras at whose exposure, in place of the lidar's, the reference frame
        stands for the network and for the boxes that come out; None: at the lidar's
    """

    config: VariantConfig
    encoder_parts: Sequence[str] = ()
    training_only: Sequence[str] = ()
    for_benchmark: bool = False
    stages: Mapping[str, Sequence[str]] = {}
    engine: Callable[[Tensor], tuple[Tensor, ...]] | None = None
    exposures: tuple[str, str] | None = None

    @abstractmethod
    def image_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return all that the encoder makes of images [N, 3, H, W], in its own precision.

        The part of a model that an engine can compute: plain operations of `encoder_parts` on any number of images.
        """

    def run_image_maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return `image_maps` from the engine, if there is one."""
        return self.image_maps(images) if self.engine is None else self.engine(images)

    @abstractmethod
    def encode(self, inputs: ModelInput) -> Encoded:
        """Return the encoder's outputs for the images; missing cameras give zeros."""

    @abstractmethod
    def predict(
        self, encoded: Encoded, history: Sequence[Any | None], inputs: ModelInput, carried: Any
    ) -> Prediction[Any, Any]:
        """Return the prediction for one frame.

        encoded: output of `encode` for this frame
        history: memory entries of the other frames that the variant uses, in the order of config.frames.offsets; None
            stands for the current frame
        inputs: of this frame
        carried: `carried` of the previous prediction; None at first
        """

    @abstractmethod
    def remember(self, encoded: Encoded, history: Sequence[Any | None], inputs: ModelInput) -> Entry:
        """Return the memory entry of a frame without predicting; arguments as in `predict`."""

    @abstractmethod
    def decode(self, outputs: Any, limits: Limits) -> Perception:
        """Return the outputs as boxes, occupancy or both, in the model's reference frame.

        Raises NotFiniteError for outputs that hold NaN or infinity, or that were computed from such features.
        """

    @abstractmethod
    def new_memory(self, interval: float) -> Memory[Any]:
        """Return an empty memory for frames that are remembered every `interval` s."""

    def recompute(self, queue: Sequence[ModelInput]) -> Any | None:
        """Return the outputs for the newest of frames, all of which are computed here: nothing is remembered.

        queue: 1 + config.frames.past frames, the newest first

        None, unless the family's publication evaluates its models in this way.
        """
        return None


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Return whether all numbers are finite, as a bool tensor [] on their device, without waiting for the device.

    A sum is NaN or infinite as soon as one summand is, and takes a single pass over the data.
    """
    return torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors]).isfinite().all()
