"""The forward pass of training, from a batch to its losses."""

from __future__ import annotations

import contextlib
import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bev_perception.config import TrainingConfig
from bev_perception.data.augment import distort_colors, draw_grid_mask, draw_photometric, grid_mask
from bev_perception.models.encoder import ENCODER_PARTS, CameraModel
from bev_perception.models.precision import PRECISIONS
from bev_perception.models.query_layers import EncodedViews
from bev_perception.sensing.preprocess import normalize_images, padded_size
from bev_perception.supervision.samples import Batch, Truth

Self = TypeVar("Self", bound="TrainingStep")


def freeze(model: Any, encoder: str) -> None:
    """Freeze the parameters that training leaves unchanged.

    encoder: as TrainingConfig.encoder
    """
    if encoder == "scratch":
        model.img_backbone.learns_statistics = True
        return
    frozen = model.img_backbone.frozen_parameters()
    if encoder == "frozen":
        frozen = [*model.img_backbone.parameters(), *model.img_neck.parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)


def encode_frames(model: CameraModel, images: Tensor, frames_with_gradient: int) -> list[list[Tensor]]:
    """Return the feature pyramids, T x L of [B, N, h, w, C].

    images: [B, T, N, 3, H, W], normalised.
    frames_with_gradient: number of frames, from the first, that train backbone and neck; the others are encoded one by
        one as in inference. 0: all.
    """
    frames = images.shape[1]
    trained = min(frames_with_gradient or frames, frames)
    levels_by_frame = _encode(model, images[:, :trained])
    if trained < frames:
        mode = model.img_backbone.training
        model.img_backbone.eval()
        with torch.no_grad():
            for t in range(trained, frames):
                levels_by_frame += _encode(model, images[:, t : t + 1])
        model.img_backbone.train(mode)
    return levels_by_frame


def _encode(model: CameraModel, images: Tensor) -> list[list[Tensor]]:
    """Return pyramids as encode_frames; all frames are encoded at once, so that each frame's maps are contiguous."""
    by_frame = images.transpose(0, 1)
    levels = model.pyramid(by_frame.flatten(0, 2))
    split = [level.unflatten(0, by_frame.shape[:3]).unbind() for level in levels]  # L x T
    return [list(frame) for frame in zip(*split, strict=True)]


class TrainingStep(nn.Module, Generic[Truth]):
    """The model with augmentation and losses, as one module that DistributedDataParallel can wrap.

    Called with a batch and what it remembers of the batch before, it returns every loss by its name and what to
    remember. The batch's seeds determine all random numbers.

    loss_names: names of all losses that can occur.
    epoch: number of epochs done; training sets it.
    """

    loss_names: tuple[str, ...]
    epoch: int = 0

    def __init__(self, model: CameraModel, recipe: TrainingConfig, precision: str) -> None:
        """Prepare the model for training.

        recipe: the variant's recipe.
        precision: of the encoder, a key of PRECISIONS.
        """
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.dtype = PRECISIONS[precision]

        if self.dtype is not None:
            self._lower(self.wide_layers())

    def _lower(self, layers: Iterable[nn.Module]) -> None:
        """Make layers compute in the encoder's precision; their inputs and outputs stay float32."""
        for layer in layers:
            layer.forward = functools.partial(self._in_precision, layer.forward)

    def _in_precision(self, forward: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        with self._autocast(values.device):
            return forward(values).float()

    def train(self: Self, mode: bool = True) -> Self:
        """Set training or evaluation mode; a frozen backbone or neck stays in evaluation mode."""
        super().train(mode)
        for part in (getattr(self.model, name) for name in ENCODER_PARTS):
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    @abstractmethod
    def forward(self, batch: Batch[Truth], memory: Any) -> tuple[dict[str, Tensor], Any]:
        """Return every loss by its name, and what to remember of the batch.

        memory: what the step before returned; None at first. It must be made of plain dictionaries, lists, tensors
            without gradient and numbers, since it is saved with the training's state. A step without memory gives None.
        """

    def wide_layers(self) -> Iterable[nn.Module]:
        """Return layers beyond the encoder that are to compute in its precision; none, unless a family has some."""
        return ()

    def begin(self) -> None:
        """Prepare the model for a training that begins; one that is resumed has its weights already."""

    @abstractmethod
    def decoder_passes(self) -> Iterable[nn.Module]:
        """Return the modules of the decoder whose activations compute_twice drops."""

    def compute_twice(self) -> None:
        """Drop activations of backbone blocks and decoder passes, and compute them again in the backward pass."""
        for module in (*self.model.img_backbone.blocks(), *self.decoder_passes()):
            passes = functools.partial(_first_and_again, module)
            module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False, context_fn=passes)

    def encode(self, batch: Batch, generators: list[torch.Generator]) -> EncodedViews:
        """Return the features, in float32, of the batch's augmented images.

        generators: a random number generator for each sample.
        """
        if isinstance(batch.images, tuple):
            return self._encoded(batch.images, batch.reference2image)
        images = self.prepare_images(batch.images, generators)
        with self._autocast(images.device):
            levels_by_frame = encode_frames(self.model, images, self.recipe.frames_with_gradient)
        levels = [[level.float() for level in levels] for levels in levels_by_frame]
        return EncodedViews(levels, batch.reference2image, (images.shape[-2], images.shape[-1]))

    @torch.no_grad()
    def encode_pixels(self, pixels: np.ndarray) -> tuple[Tensor, ...]:
        """Return the pyramid, [N, h, w, C] for each level.

        pixels: [N, h, w, 3] uint8 BGR in the model's input size.
        """
        device = next(self.model.parameters()).device
        images = normalize_images(torch.from_numpy(pixels).to(device), self.model.config.image)
        with self._autocast(device):
            return self.model.pyramid(images)

    def _encoded(self, features: tuple[Tensor, ...], reference2image: Tensor) -> EncodedViews:
        """Return the views of a batch whose features, [B, T, N, h, w, C] for each level, were computed before."""
        frames = reference2image.shape[1]
        levels = [[level[:, t].float().contiguous() for level in features] for t in range(frames)]
        image = self.model.config.image
        return EncodedViews(levels, reference2image, padded_size(image, image.height, image.width))

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.dtype)

    @torch.no_grad()
    def prepare_images(self, pixels: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return augmented, normalised and padded images [B, T, N, 3, H, W].

        pixels: [B, T, N, h, w, 3] uint8 BGR.
        """
        samples = [
            _distort(sample, generator) if self.recipe.color_augmentation else sample
            for sample, generator in zip(pixels, generators, strict=True)
        ]
        images = torch.stack(
            [normalize_images(s.flatten(0, 1), self.model.config.image).unflatten(0, s.shape[:2]) for s in samples]
        )
        if self.recipe.grid_mask:
            self._mask(images, generators[0])
        return images

    def _mask(self, images: Tensor, generator: torch.Generator) -> None:
        """Blank the same squares in all images of the frames that train the encoder."""
        height, width = images.shape[-2:]
        drawn = draw_grid_mask(height, width, generator)
        if drawn is not None:
            kept = torch.from_numpy(grid_mask(height, width, drawn)).to(images.device)
            images[:, : self.recipe.frames_with_gradient or None] *= kept


def _first_and_again(module: nn.Module) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """Return what a module's first pass runs in, and what its second pass runs in; see compute_twice."""
    return contextlib.nullcontext(), _buffers_kept(module)


@contextlib.contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """Undo what a pass changes of a module's buffers: norms have taken up the statistics of the same maps before."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def _distort(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images [T, N, h, w, 3] float32 with randomly distorted colours.

    pixels: [T, N, h, w, 3] uint8 BGR.
    """
    frames = [
        distort_colors(frame.permute(0, 3, 1, 2).float(), draw_photometric(len(frame), generator))
        for frame in pixels  # frame by frame, as copies of all frames at once would fill the memory
    ]
    return torch.stack(frames).permute(0, 1, 3, 4, 2)
